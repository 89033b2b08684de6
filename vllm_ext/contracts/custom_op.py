"""Custom ops: layers whose computation a platform may replace.

An in-tree op is registered under a name (``rms_norm``); an out-of-tree class takes its place at construction, and which
``forward_*`` runs is decided once, at construction too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import nn

from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.contracts.platform import PlatformEnum
from vllm_ext.contracts.vllm_config import get_current_vllm_config
from vllm_ext.registry.custom_ops import CUSTOM_OPS

_FORWARD_BY_PLATFORM = {
    PlatformEnum.CPU: "forward_cpu",
    PlatformEnum.CUDA: "forward_cuda",
    PlatformEnum.ROCM: "forward_hip",
    PlatformEnum.TPU: "forward_tpu",
    PlatformEnum.XPU: "forward_xpu",
    PlatformEnum.OOT: "forward_oot",
}

C = TypeVar("C", bound="type[CustomOp]")


class CustomOp(nn.Module):
    """Base of replaceable ops. Built inside ``set_current_vllm_config``.

    A subclass defines :meth:`forward_native` in plain torch, and ``forward_cpu``, ``forward_cuda`` … or
    ``forward_oot`` where a platform has something faster.
    """

    name: ClassVar[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> CustomOp:
        return super().__new__(find_replacement(cls) or cls)

    def __init__(self) -> None:
        super().__init__()
        self._forward_method = self._choose_forward()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward_method(*args, **kwargs)

    def forward_native(self, *args: Any, **kwargs: Any) -> Any:
        """The op in plain torch; the definition of its result."""
        raise NotImplementedError(f"custom op {type(self).__qualname__} does not implement forward_native()")

    def forward_cpu(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_native(*args, **kwargs)

    def forward_cuda(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_native(*args, **kwargs)

    def forward_hip(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_cuda(*args, **kwargs)

    def forward_tpu(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_native(*args, **kwargs)

    def forward_xpu(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_native(*args, **kwargs)

    def forward_oot(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_native(*args, **kwargs)

    @classmethod
    def can_run(cls, method: str) -> bool:
        """Whether ``method``, such as ``forward_cpu``, can compute in the engine being built; asked at construction."""
        return True

    def _choose_forward(self) -> Callable[..., Any]:
        name = getattr(type(self), "name", type(self).__name__)
        bound: Callable[..., Any] = getattr(self, choose_forward(type(self), name))
        return bound

    @classmethod
    def register(cls, name: str) -> Callable[[C], C]:
        """Class decorator: make an in-tree op known as ``name``."""

        def decorate(op_cls: C) -> C:
            op_cls.name = name
            CUSTOM_OPS.register(name, op_cls)
            return op_cls

        return decorate

    @classmethod
    def register_oot(cls, op_cls: Any = None, name: str | None = None) -> Any:
        """Class decorator: construct this class wherever the in-tree op is asked for.

        ``@RMSNorm.register_oot``, ``@RMSNorm.register_oot()`` and ``@CustomOp.register_oot(name="RMSNorm")`` are the
        same. The replacement keeps the op's name, so the settings of ``custom_ops`` still reach it.

        Raises:
            RegistrationError: the target is unknown, or the class is not a subclass of it.
        """

        def decorate(replacement: C) -> C:
            CUSTOM_OPS.register_oot(cls if name is None else name, replacement)
            return replacement

        return decorate if op_cls is None else decorate(op_cls)


def find_replacement(op_cls: type) -> type | None:
    """The out-of-tree class that the engine being built takes instead of ``op_cls``, if there is one.

    Engines on other platforms may live in the same process: each takes the replacements meant for its own.
    """
    if not current_platform.get().is_out_of_tree():
        return None
    device = get_current_vllm_config().device_config
    return CUSTOM_OPS.find_oot(op_cls, device.distribution, device.foreign_distributions)


def choose_forward(op_cls: type[CustomOp], name: str) -> str:
    """The method of ``op_cls`` that computes op ``name`` in the engine being built."""
    if not is_enabled(name, get_current_vllm_config().compilation_config.custom_ops):
        return "forward_native"
    method = _FORWARD_BY_PLATFORM.get(current_platform.get()._enum, "forward_native")
    # A method that only delegates is skipped, so that the native op costs one call and not two.
    if getattr(op_cls, method) is getattr(CustomOp, method) or not op_cls.can_run(method):
        return "forward_native"
    return method


def is_enabled(name: str, custom_ops: Sequence[str]) -> bool:
    """Whether op ``name`` uses its platform's implementation; ``none`` turns all off but those with ``+name``."""
    default_on = "none" not in custom_ops
    return (default_on or f"+{name}" in custom_ops) and f"-{name}" not in custom_ops
