"""Ops of this platform, which are built wherever a model asks for the in-tree ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vllm_ext import CustomOp, direct_register_custom_op
from vllm_ext.layers.activation import GeluAndMul, SiluAndMul
from vllm_ext.layers.layernorm import RMSNorm
from vllm_ext.layers.linear import RowParallelLinear
from vllm_ext.layers.logits_processor import LogitsProcessor
from vllm_ext.layers.rotary_embedding import RotaryEmbedding
from vllm_ext.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm_ext.worker.sampling.metadata import SamplingMetadata
from vllm_ext.worker.sampling.sampler import Sampler, SamplerOutput
from vllm_ext_dummy_platform import calls


def register_custom_ops() -> None:
    """Register all ops; calling it again changes nothing."""
    RMSNorm.register_oot(MyDummyRMSNorm)
    SiluAndMul.register_oot(MyDummySiluAndMul)
    GeluAndMul.register_oot(MyDummyGeluAndMul)
    RotaryEmbedding.register_oot(MyDummyRotaryEmbedding)
    VocabParallelEmbedding.register_oot(MyDummyVocabParallelEmbedding)
    RowParallelLinear.register_oot(MyDummyRowParallelLinear)
    # As other platforms do it: from a table of names.
    CustomOp.register_oot(_decorated_op_cls=MyDummyParallelLMHead, name="ParallelLMHead")
    CustomOp.register_oot(_decorated_op_cls=MyDummyLogitsProcessor, name="LogitsProcessor")
    CustomOp.register_oot(_decorated_op_cls=MyDummySampler, name="Sampler")
    direct_register_custom_op("my_dummy_gelu_and_mul", gelu_and_mul, fake_impl=gelu_and_mul_fake)


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


class MyDummyGeluAndMul(GeluAndMul):
    """``gelu(gate) * up`` of ``[..., 2 * size]``, gate first, by an op of torch."""

    def forward_oot(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.vllm_ext.my_dummy_gelu_and_mul(x, self.approximate)


def gelu_and_mul(x: torch.Tensor, approximate: str) -> torch.Tensor:
    """``torch.ops.vllm_ext.my_dummy_gelu_and_mul``."""
    calls["gelu_and_mul"] += 1
    gate, up = x.split(x.shape[-1] // 2, dim=-1)
    return F.gelu(gate, approximate=approximate) * up


def gelu_and_mul_fake(x: torch.Tensor, approximate: str) -> torch.Tensor:
    """The shape of its result, for compiled graphs."""
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


class MyDummyRotaryEmbedding(RotaryEmbedding):
    """Turns each pair of numbers, half a head apart, as one complex number."""

    def forward_oot(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        calls["rotary_embedding"] += 1
        half = self.head_size // 2
        rows = self.cos_sin_cache[positions].float()
        # cos, cos, -sin, sin.
        turns = torch.complex(rows[:, :half], rows[:, 3 * half :]).unsqueeze(1)
        return turn(query, turns), None if key is None else turn(key, turns)


def turn(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """``x`` ``[tokens, heads * head_size]``, each head turned by ``turns`` ``[tokens, 1, head_size / 2]``."""
    halves = x.float().view(x.shape[0], -1, 2, turns.shape[-1])
    turned = torch.complex(halves[:, :, 0], halves[:, :, 1]) * turns
    return torch.stack((turned.real, turned.imag), dim=2).view(x.shape).to(x.dtype)


class MyDummyVocabParallelEmbedding(VocabParallelEmbedding):
    """Looks rows up by index; the table and its loading are the in-tree layer's."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        calls["vocab_parallel_embedding"] += 1
        return super().forward(input_ids)


class MyDummyRowParallelLinear(RowParallelLinear):
    """A projection whose partial products are summed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        calls["row_parallel_linear"] += 1
        return super().forward(x)


class MyDummyParallelLMHead(ParallelLMHead):
    """The head."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        calls["parallel_lm_head"] += 1
        return super().forward(x)


class MyDummyLogitsProcessor(LogitsProcessor):
    """From hidden states to logits."""

    def forward(
        self, lm_head: nn.Module | None, hidden_states: torch.Tensor, embedding_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        calls["logits_processor"] += 1
        return super().forward(lm_head, hidden_states, embedding_bias)


class MyDummySampler(Sampler):
    """From logits to tokens; the device's own way to take the likeliest one."""

    def forward(self, logits: torch.Tensor, metadata: SamplingMetadata | None = None) -> SamplerOutput:
        calls["sampler"] += 1
        if metadata is None:
            return SamplerOutput(logits.max(dim=-1).indices, {})
        return super().forward(logits, metadata)
