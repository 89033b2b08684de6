"""Activations of gated feed-forward layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vllm_ext import _custom_ops
from vllm_ext.contracts.custom_op import CustomOp
from vllm_ext.layers.kernels import CpuKernelOp


@CustomOp.register("silu_and_mul")
class SiluAndMul(CpuKernelOp):
    """``silu(gate) * up`` of ``[..., 2 * size]``, gate first, to ``[..., size]``."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def forward_cpu(self, x: torch.Tensor) -> torch.Tensor:
        """One pass over ``x`` in a compiled kernel; as :meth:`forward_native`."""
        if x.dtype is not torch.float32:
            return self.forward_native(x)
        return _custom_ops.silu_and_mul(x.contiguous())
