"""Custom ops and pluggable layers: what models are built of, and a platform may replace.

An in-tree class is registered under a name (``rms_norm``); an out-of-tree subclass takes its place at construction.
Which ``forward_*`` of a :class:`CustomOp` runs is decided once, at construction too. The names are those of vLLM's
``vllm.model_executor.custom_op``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeVar

from torch import nn

from vllm_ext.contracts.call_check import takes_keyword
from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.contracts.first_result import bind_checked
from vllm_ext.contracts.platform import PlatformEnum
from vllm_ext.contracts.vllm_config import find_current_vllm_config, get_current_vllm_config
from vllm_ext.errors import ConfigError, RegistrationError, dotted_path
from vllm_ext.registry.custom_ops import CUSTOM_OPS
from vllm_ext.registry.scope import current_scope

_FORWARD_BY_PLATFORM = {
    PlatformEnum.CPU: "forward_cpu",
    PlatformEnum.CUDA: "forward_cuda",
    PlatformEnum.ROCM: "forward_hip",
    PlatformEnum.TPU: "forward_tpu",
    PlatformEnum.XPU: "forward_xpu",
    PlatformEnum.OOT: "forward_oot",
}

C = TypeVar("C", bound="type[Replaceable]")


class Replaceable(nn.Module):
    """What :class:`CustomOp` and :class:`PluggableLayer` share: a name, and a class that may stand in for another; in
    vLLM, each has it of its own.
    """

    name: ClassVar[str]
    """The name of the op, which a class that takes its place has too."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        instance: Self = super().__new__(maybe_get_oot_by_class(cls))
        return instance

    @classmethod
    def register(cls, name: str) -> Callable[[C], C]:
        """Class decorator: make an op of this package, or of a plugin, known as ``name``.

        Raises:
            RegistrationError: the name belongs to another class, or the class is neither op nor layer.
        """

        def decorate(op_cls: C) -> C:
            if not isinstance(op_cls, type) or not issubclass(op_cls, Replaceable):
                raise RegistrationError(f"{op_cls!r} cannot be custom op {name!r}: it is no CustomOp or PluggableLayer")
            CUSTOM_OPS.register(name, op_cls)
            op_cls.name = name
            return op_cls

        return decorate

    @classmethod
    def register_oot(cls, _decorated_op_cls: Any = None, name: str | None = None) -> Any:
        """Class decorator: construct this class wherever exactly the in-tree class is asked for.

        ``@RMSNorm.register_oot``, ``@RMSNorm.register_oot()``, ``@CustomOp.register_oot(name="RMSNorm")`` and
        ``CustomOp.register_oot(_decorated_op_cls=MyNorm, name="RMSNorm")`` are the same. It may be called again. The
        replacement keeps the op's name, so that the setting ``custom_ops`` still reaches it.

        Args:
            name: the in-tree class's name, if not this class's own.

        Raises:
            RegistrationError: the target is unknown, or the class is not a subclass of it.
        """

        def decorate(replacement: C) -> C:
            replacement.name = CUSTOM_OPS.register_oot(cls if name is None else name, replacement)
            return replacement

        return decorate if _decorated_op_cls is None else decorate(_decorated_op_cls)


class CustomOp(Replaceable):
    """Base of replaceable ops. Built inside ``set_current_vllm_config``. vLLM: ``CustomOp``.

    A subclass defines :meth:`forward_native` in plain torch, and ``forward_cpu``, ``forward_cuda`` … or
    ``forward_oot`` where a platform has something faster. All of them take and return the same.

    Args:
        enforce_enable: run the platform's form whatever the setting ``custom_ops`` says.
        compile_native: whether vLLM compiles the native form; nothing is compiled here.

    Raises:
        RuntimeError: no engine is being built here.
        ConfigError: ``custom_ops`` turns the op both on and off.
    """

    def __init__(self, *, enforce_enable: bool = False, compile_native: bool = False) -> None:
        super().__init__()
        self._enforce_enable = enforce_enable
        # An override may be one without parameters, as it was here, or with vLLM's, which need not have a default.
        takes_it = takes_keyword(self.dispatch_forward, "compile_native")
        self._forward_method = self.dispatch_forward(**{"compile_native": compile_native} if takes_it else {})
        names = ["_forward_method"]
        if type(self).forward is CustomOp.forward:
            # torch calls it as it is, without a detour by the class.
            names.append("forward")
        if (op_cls := CUSTOM_OPS.stood_in_for(type(self))) is None:
            vars(self).update(dict.fromkeys(names, self._forward_method))
        else:
            bind_checked(self, names, self._forward_method, _returned_nothing(self, self._forward_method, op_cls))

    @classmethod
    def register(cls, name: str, dynamic_arg_dims: dict[str, int | list[int]] | None = None) -> Callable[[C], C]:
        """Class decorator: make an op of this package, or of a plugin, known as ``name``.

        Args:
            dynamic_arg_dims: dimensions by argument that vLLM's compiler takes as variable; nothing is compiled here.

        Raises:
            RegistrationError: the name belongs to another class, or the class is neither op nor layer.
        """
        return super().register(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute, by the method that :meth:`dispatch_forward` chose."""
        return self._forward_method(*args, **kwargs)

    def forward_native(self, *args: Any, **kwargs: Any) -> Any:
        """The op in plain torch; the definition of its result, and of what it may change in place.

        Raises:
            NotImplementedError: the op does not define it.
        """
        raise NotImplementedError(f"custom op {type(self).__qualname__} does not implement forward_native()")

    def forward_cpu(self, *args: Any, **kwargs: Any) -> Any:
        """The op on the in-tree platform for processors; :meth:`forward_native` unless overridden."""
        return self.forward_native(*args, **kwargs)

    def forward_cuda(self, *args: Any, **kwargs: Any) -> Any:
        """The op on CUDA; :meth:`forward_native` unless overridden."""
        return self.forward_native(*args, **kwargs)

    def forward_hip(self, *args: Any, **kwargs: Any) -> Any:
        """The op on ROCm; :meth:`forward_cuda` unless overridden."""
        return self.forward_cuda(*args, **kwargs)

    def forward_tpu(self, *args: Any, **kwargs: Any) -> Any:
        """The op on TPUs; :meth:`forward_native` unless overridden."""
        return self.forward_native(*args, **kwargs)

    def forward_xpu(self, *args: Any, **kwargs: Any) -> Any:
        """The op on XPUs; :meth:`forward_native` unless overridden."""
        return self.forward_native(*args, **kwargs)

    def forward_oot(self, *args: Any, **kwargs: Any) -> Any:
        """The op on out-of-tree platforms; :meth:`forward_native` unless overridden."""
        return self.forward_native(*args, **kwargs)

    @classmethod
    def can_run(cls, method: str) -> bool:
        """Whether ``method``, such as ``forward_cpu``, can compute in the engine being built; asked at construction.

        Where it cannot, :meth:`forward_native` runs. This is an extension of vLLM's contract.
        """
        return True

    @classmethod
    def enabled(cls) -> bool:
        """Whether the setting ``custom_ops`` lets the platform's form of this op run in the engine being built.

        Raises:
            ConfigError: it holds both ``+name`` and ``-name``.
        """
        custom_ops = get_current_vllm_config().compilation_config.custom_ops
        return is_enabled(getattr(cls, "name", cls.__name__), custom_ops)

    @staticmethod
    def default_on() -> bool:
        """Whether ops run in their platform's form unless ``custom_ops`` names them: not where it holds ``none``.

        Raises:
            ConfigError: it holds both ``all`` and ``none``.
        """
        return _default_on(get_current_vllm_config().compilation_config.custom_ops)

    def dispatch_forward(self, compile_native: bool = False) -> Callable[..., Any]:
        """The bound method that :meth:`forward` calls; asked once, at construction.

        Args:
            compile_native: as the constructor got it.
        """
        bound: Callable[..., Any] = getattr(self, choose_forward(type(self), self._enforce_enable))
        return bound


class PluggableLayer(Replaceable):
    """Base of whole layers that a platform may replace: parameters, loading and computation alike. vLLM:
    ``PluggableLayer``.

    They have no ``forward_*`` to choose from, and the setting ``custom_ops`` does not concern them. Built outside of an
    engine, a layer is what it says.
    """


def maybe_get_oot_by_class(op_cls: type[Any]) -> type[Any]:
    """The class that is built where ``op_cls`` is asked for: an out-of-tree one, or itself."""
    return find_replacement(op_cls) or op_cls


def find_replacement(op_cls: type) -> type | None:
    """The out-of-tree class that the engine being built takes instead of ``op_cls``, if there is one.

    Engines on other platforms may live in the same process: each takes the replacements meant for its own.
    """
    if find_current_vllm_config() is None or not current_platform.get().is_out_of_tree():
        return None
    return CUSTOM_OPS.find_oot(op_cls, current_scope())


def choose_forward(op_cls: type[CustomOp], enforce_enable: bool = False) -> str:
    """The method of ``op_cls`` that computes in the engine being built."""
    if not (enforce_enable or op_cls.enabled()):
        return "forward_native"
    method = _FORWARD_BY_PLATFORM.get(current_platform.get()._enum, "forward_native")
    # A method that only delegates is skipped, so that the native op costs one call and not two.
    if method == "forward_hip" and op_cls.forward_hip is CustomOp.forward_hip:
        method = "forward_cuda"
    if getattr(op_cls, method) is getattr(CustomOp, method) or not op_cls.can_run(method):
        return "forward_native"
    return method


def _returned_nothing(op: CustomOp, method: Callable[..., Any], op_cls: type) -> str:
    return (
        f"{getattr(method, '__name__', 'forward')}() of {dotted_path(type(op))}, which stands in for custom op "
        f"{op_cls.__name__!r}, returned None; it has to return what {op_cls.__name__}.forward_native() does"
    )


def is_enabled(name: str, custom_ops: Sequence[str]) -> bool:
    """Whether op ``name`` uses its platform's form; ``none`` turns all off but those with ``+name``.

    Raises:
        ConfigError: it is turned on and off.
    """
    on, off = f"+{name}" in custom_ops, f"-{name}" in custom_ops
    if on and off:
        raise ConfigError(f"custom_ops holds both +{name} and -{name}; keep one of them")
    return (_default_on(custom_ops) or on) and not off


def _default_on(custom_ops: Sequence[str]) -> bool:
    if "all" in custom_ops and "none" in custom_ops:
        raise ConfigError("custom_ops holds both all and none; keep one of them")
    return "none" not in custom_ops
