"""Activations of gated feed-forward layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vllm_ext.contracts.custom_op import CustomOp


@CustomOp.register("silu_and_mul")
class SiluAndMul(CustomOp):
    """``silu(gate) * up`` of ``[..., 2 * size]``, gate first, to ``[..., size]``."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
