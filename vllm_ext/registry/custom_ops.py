"""Custom ops by name, and the out-of-tree classes that take their place."""

from __future__ import annotations

from typing import Any

from vllm_ext.errors import RegistrationError, did_you_mean, listing
from vllm_ext.registry.base import Registration, Registry


class _CustomOpRegistry:
    """In-tree ops by op name; replacements by the class name of the op they replace."""

    def __init__(self) -> None:
        self.ops: Registry[type] = Registry("custom op")
        self.oot: Registry[type] = Registry("out-of-tree custom op")

    def register(self, name: str, op_cls: type) -> None:
        self.ops.register(name, op_cls)

    def register_oot(self, target: type | str, replacement: type) -> None:
        """Let ``replacement`` be built in place of ``target`` (a registered class, or the name of one)."""
        known = {entry.value.__name__: entry.value for entry in self.ops.snapshot().values()}
        name = target if isinstance(target, str) else target.__name__
        op_cls = known.get(name)
        if op_cls is None:
            raise RegistrationError(
                f"no custom op of class {name!r} is registered to be replaced{did_you_mean(name, known)}; "
                f"registered: {listing(known)}"
            )
        if not issubclass(replacement, op_cls):
            raise RegistrationError(
                f"{replacement.__module__}.{replacement.__qualname__} cannot replace custom op {name!r}: "
                f"it is not a subclass of {op_cls.__module__}.{op_cls.__qualname__}"
            )
        self.oot.register(name, replacement)

    def find_oot(self, op_cls: type) -> type | None:
        """The class to build instead of exactly ``op_cls``; subclasses of a replaced op are left alone."""
        entry = self.oot.find(op_cls.__name__)
        if entry is None or op_cls not in entry.value.__mro__[1:]:
            return None
        return entry.value

    def snapshot(self) -> tuple[dict[str, Registration[Any]], dict[str, Registration[Any]]]:
        return self.ops.snapshot(), self.oot.snapshot()

    def restore(self, state: tuple[dict[str, Registration[Any]], dict[str, Registration[Any]]]) -> None:
        self.ops.restore(state[0])
        self.oot.restore(state[1])


CUSTOM_OPS = _CustomOpRegistry()
