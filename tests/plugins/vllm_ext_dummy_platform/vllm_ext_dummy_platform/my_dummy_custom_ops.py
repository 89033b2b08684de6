"""Ops of this platform, which are built wherever a model asks for the in-tree ones."""

from __future__ import annotations

import torch

from vllm_ext.layers.activation import SiluAndMul
from vllm_ext.layers.layernorm import RMSNorm
from vllm_ext_dummy_platform import calls


def register_custom_ops() -> None:
    """Register all ops; calling it again changes nothing."""
    RMSNorm.register_oot(MyDummyRMSNorm)
    SiluAndMul.register_oot(MyDummySiluAndMul)


class MyDummyRMSNorm(RMSNorm):
    """Computes in float32 whatever the model's dtype is."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps)
        self.eps = eps

    def forward_oot(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        calls["rms_norm"] += 1
        if residual is None:
            return normalise(x, self.eps) * self.weight
        total = x + residual
        return normalise(total, self.eps) * self.weight, total


def normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    """``x`` divided by its root mean square over the last dimension."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype)


class MyDummySiluAndMul(SiluAndMul):
    """``silu(gate) * up`` of ``[..., 2 * size]``, gate first."""

    def forward_oot(self, x: torch.Tensor) -> torch.Tensor:
        calls["silu_and_mul"] += 1
        gate, up = x.split(x.shape[-1] // 2, dim=-1)
        return gate * torch.sigmoid(gate) * up
