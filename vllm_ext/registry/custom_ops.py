"""Custom ops and pluggable layers by name, and the out-of-tree classes that take their place."""

from __future__ import annotations

import importlib
import itertools
import logging
from typing import Any

from vllm_ext.errors import RegistrationError, did_you_mean, dotted_path, listing
from vllm_ext.registry.base import Registration, Registry
from vllm_ext.registry.owners import current_owner
from vllm_ext.registry.scope import Scope, key_that_counts, owned_key, split_key

logger = logging.getLogger(__name__)

# Each registers itself when its module is imported; a plugin may name it before that.
IN_TREE = {
    "column_parallel_linear": "vllm_ext.layers.linear:ColumnParallelLinear",
    "gelu_and_mul": "vllm_ext.layers.activation:GeluAndMul",
    "logits_processor": "vllm_ext.layers.logits_processor:LogitsProcessor",
    "merged_column_parallel_linear": "vllm_ext.layers.linear:MergedColumnParallelLinear",
    "parallel_lm_head": "vllm_ext.layers.vocab_parallel_embedding:ParallelLMHead",
    "qkv_parallel_linear": "vllm_ext.layers.linear:QKVParallelLinear",
    "replicated_linear": "vllm_ext.layers.linear:ReplicatedLinear",
    "rms_norm": "vllm_ext.layers.layernorm:RMSNorm",
    "rotary_embedding": "vllm_ext.layers.rotary_embedding:RotaryEmbedding",
    "row_parallel_linear": "vllm_ext.layers.linear:RowParallelLinear",
    "sampler": "vllm_ext.worker.sampling.sampler:Sampler",
    "silu_and_mul": "vllm_ext.layers.activation:SiluAndMul",
    "vocab_parallel_embedding": "vllm_ext.layers.vocab_parallel_embedding:VocabParallelEmbedding",
}
"""The ops that come with vllm_ext."""


_REPLACED_METHODS = ("forward_oot", "forward_native", "forward", "dispatch_forward", "__init__")
"""What a replacement overrides as a rule, as far as the op has it."""
_OF_OTHER_PLATFORMS = frozenset({"forward_cpu", "forward_cuda", "forward_hip", "forward_tpu", "forward_xpu"})
"""Forms of an op that no out-of-tree platform runs."""
_OF_ANY_CLASS = frozenset(
    {*vars(type("_", (), {})), "__annotations__", "__firstlineno__", "__static_attributes__", "name"}
)
"""What a class has that says nothing of what it does; the op's name is given to it."""


class _CustomOpRegistry:
    """Ops by name; replacements by the name of the op that they replace and by their owner."""

    def __init__(self) -> None:
        self.ops: Registry[type] = Registry("custom op")
        self.oot: Registry[type] = Registry("out-of-tree custom op")

    def register(self, name: str, op_cls: type) -> None:
        """Make ``op_cls`` known as ``name``.

        Raises:
            RegistrationError: the name belongs to another class.
        """
        old = self.ops.snapshot().get(name)
        taken = IN_TREE.get(name) if old is None else _path(old.value)
        if taken is not None and taken != _path(op_cls):
            raise RegistrationError(
                f"{_path(op_cls)} cannot be custom op {name!r}, which is {taken}. An op of your own takes a name of "
                f"its own; one that takes the place of this op is a subclass of it, with register_oot"
            )
        self.ops.register(name, op_cls)

    def names(self) -> list[str]:
        """All ops, whether their modules are imported or not; sorted."""
        return sorted({*self.ops.names(), *IN_TREE})

    def get(self, name: str) -> type:
        """The class of op ``name``, of :meth:`names`; the module of one that comes with vllm_ext is imported."""
        if name not in self.ops.names():
            importlib.import_module(IN_TREE[name].partition(":")[0])
        return self.ops.snapshot()[name].value

    def register_oot(self, target: type | str, replacement: type) -> str:
        """Let ``replacement`` be built in place of ``target``, a registered class or the name of one.

        Returns: the name of the op.

        Effects: a warning where the replacement does nothing else than the op.

        Raises:
            RegistrationError: no such class is registered, or the replacement is none of its subclasses.
        """
        name = self._find_target(target)
        op_cls = self.get(name)
        if not isinstance(replacement, type) or not issubclass(replacement, op_cls) or replacement is op_cls:
            raise RegistrationError(
                f"{_name(replacement)} cannot replace custom op {op_cls.__name__!r}: it is not a subclass of "
                f"{_name(op_cls)}"
            )
        if (own := self.name_of(replacement)) is not None:
            raise RegistrationError(
                f"{_name(replacement)} cannot replace custom op {op_cls.__name__!r}: it is the op {own!r} itself. "
                "Register a subclass of it"
            )
        owner = current_owner().identity
        others = [o for (op, o) in map(split_key, self.oot.names()) if op == name and o != owner]
        if others:
            logger.warning(
                "custom op %r is replaced by %s and by %s; a platform uses its own distribution's",
                op_cls.__name__,
                owner,
                others[0],
            )
        key = owned_key(name, owner)
        # Said once, however often the plugin is loaded.
        if key not in self.oot.names() and (idle := _changes_nothing(op_cls, replacement)):
            logger.warning("%s", idle)
        self.oot.register(key, replacement)
        return name

    def name_of(self, op_cls: type) -> str | None:
        """The name that exactly this class is registered under."""
        name = vars(op_cls).get("name")
        entry = self.ops.snapshot().get(name) if isinstance(name, str) else None
        return name if entry is not None and entry.value is op_cls else None

    def stood_in_for(self, op_cls: type) -> type | None:
        """The class of vllm_ext's own whose name this other class has; ``None`` where there is none."""
        name = getattr(op_cls, "name", None)
        return self.get(name) if name in IN_TREE and self.name_of(op_cls) is None else None

    def find_oot(self, op_cls: type, scope: Scope) -> type | None:
        """The class to build instead of exactly ``op_cls``; subclasses of a replaced op are left alone.

        That of the platform's distribution is taken if there is one, else the last one registered; those of other
        platforms are for them alone.
        """
        name = self.name_of(op_cls)
        if name is None:
            return None
        # The class may have been defined anew since.
        fitting = [key for key, entry in self.oot.snapshot().items() if issubclass(entry.value, op_cls)]
        key = key_that_counts(fitting, name, scope)
        taken = None if key is None else self.oot.find(key)
        return taken.value if taken else None

    def replacements(self, name: str) -> list[Registration[type]]:
        """All classes registered to be built instead of op ``name``."""
        return [entry for key, entry in self.oot.snapshot().items() if split_key(key)[0] == name]

    def snapshot(self) -> tuple[dict[str, Registration[Any]], dict[str, Registration[Any]]]:
        return self.ops.snapshot(), self.oot.snapshot()

    def restore(self, state: tuple[dict[str, Registration[Any]], dict[str, Registration[Any]]]) -> None:
        self.ops.restore(state[0])
        self.oot.restore(state[1])

    def _find_target(self, target: type | str) -> str:
        """The op that is called so, or is this class."""
        classes = {name: path.partition(":")[2] for name, path in IN_TREE.items()}
        classes |= {name: entry.value.__name__ for name, entry in self.ops.snapshot().items()}
        if isinstance(target, str):
            wanted, found = target, [name for name, cls_name in classes.items() if cls_name == target]
        else:
            own = self.name_of(target)
            wanted, found = target.__name__, [own] if own is not None else []
        if len(found) > 1:
            raise RegistrationError(
                f"{len(found)} custom ops have a class {wanted!r}: {listing(found)}; call register_oot of the class "
                "that is meant"
            )
        if not found:
            # Who gives the op's name instead of its class's.
            hint = f" (did you mean {classes[wanted]!r}?)" if wanted in classes else ""
            raise RegistrationError(
                f"no custom op of class {wanted!r} is registered to be replaced"
                f"{hint or did_you_mean(wanted, classes.values())}; registered: {listing(classes.values())}"
            )
        return found[0]


def _changes_nothing(op_cls: type, replacement: type) -> str:
    """What to say of a replacement that overrides nothing of the op, such as one with a misspelt method; else empty."""
    above = itertools.takewhile(lambda cls: cls is not op_cls, replacement.__mro__)
    defined = list(dict.fromkeys(name for cls in above for name in vars(cls) if name not in _OF_ANY_CLASS))
    if any(hasattr(op_cls, name) and name not in _OF_OTHER_PLATFORMS for name in defined):
        return ""
    methods = [name for name in _REPLACED_METHODS if hasattr(op_cls, name)]
    hints = [f"{name}{did_you_mean(name, methods)}" for name in defined]
    return (
        f"{_name(replacement)} takes the place of custom op {op_cls.__name__!r}, and changes nothing of it: it "
        f"overrides none of {', '.join(methods)}; it defines {', '.join(hints) or 'nothing'}"
    )


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _name(thing: object) -> str:
    return dotted_path(thing) if isinstance(thing, type) else repr(thing)


CUSTOM_OPS = _CustomOpRegistry()
