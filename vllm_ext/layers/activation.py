"""Activations of feed-forward layers, gated or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from vllm_ext import _custom_ops
from vllm_ext.contracts.custom_op import CustomOp
from vllm_ext.errors import ConfigError, listing
from vllm_ext.layers.cpu_kernel_op import CpuKernelOp


@CustomOp.register("silu_and_mul")
class SiluAndMul(CpuKernelOp):
    """``silu(gate) * up`` of ``[..., 2 * size]``, gate first, to ``[..., size]``. vLLM: ``SiluAndMul``."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        """The op in plain torch.

        Args:
            x: ``[..., 2 * size]``, floating-point; only read.

        Returns: a new tensor ``[..., size]`` of the same dtype.
        """
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def forward_cpu(self, x: torch.Tensor) -> torch.Tensor:
        """One pass over ``x`` in a compiled kernel; as :meth:`forward_native`."""
        if not _custom_ops.are_usable(x.dtype):
            return self.forward_native(x)
        return _custom_ops.silu_and_mul(x.contiguous())


@CustomOp.register("gelu_and_mul")
class GeluAndMul(CustomOp):
    """``gelu(gate) * up`` of ``[..., 2 * size]``, gate first, to ``[..., size]``. vLLM: ``GeluAndMul``.

    Args:
        approximate: ``none``, or ``tanh`` for the approximation by a hyperbolic tangent.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ConfigError(f"gelu_and_mul: approximate is {approximate!r}; it takes none or tanh")
        self.approximate = approximate

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        """The op in plain torch.

        Args:
            x: ``[..., 2 * size]``, floating-point; only read.

        Returns: a new tensor ``[..., size]`` of the same dtype.
        """
        gate, up = x.chunk(2, dim=-1)
        return F.gelu(gate, approximate=self.approximate).mul_(up)

    def extra_repr(self) -> str:
        """For people, where the model is printed."""
        return f"approximate={self.approximate}"


GATED_ACTIVATIONS: dict[str, Callable[[], CustomOp]] = {
    "silu": SiluAndMul,
    "gelu": GeluAndMul,
    "gelu_pytorch_tanh": partial(GeluAndMul, approximate="tanh"),
}
"""By the name in ``config.json``."""


def get_act_and_mul_fn(act_fn_name: str) -> CustomOp:
    """The op for a gated feed-forward layer with this activation; ConfigError where there is none."""
    if act_fn_name not in GATED_ACTIVATIONS:
        raise ConfigError(f"no gated activation {act_fn_name!r}; there are: {listing(GATED_ACTIVATIONS)}")
    return GATED_ACTIVATIONS[act_fn_name]()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
"""Activations of feed-forward layers without a gate, by the name in ``config.json``."""


def get_act_fn(act_fn_name: str) -> nn.Module:
    """The activation of a feed-forward layer without a gate; ConfigError where there is none."""
    if act_fn_name not in ACTIVATIONS:
        raise ConfigError(f"no activation {act_fn_name!r}; there are: {listing(ACTIVATIONS)}")
    return ACTIVATIONS[act_fn_name]()
