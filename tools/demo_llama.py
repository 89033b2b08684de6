"""The network that ``train_demo_model.py`` trains: Llama with grouped-query attention and tied embeddings.

Parameters have the names of Hugging Face's checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; ``head_dim`` times ``heads`` need not be ``hidden``."""

    vocab: int = 2048
    hidden: int = 192
    intermediate: int = 480
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class Attention(nn.Module):
    """Causal self-attention with rotary positions; ``heads / kv_heads`` query heads share a KV head."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map ``x`` (batch, time, hidden) to the same shape; ``cos`` and ``sin`` are (time, head_dim)."""
        s, (batch, time, _) = self.shape, x.shape
        # One product is faster than three; the weights stay apart for the optimiser and the file.
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = F.linear(x, weight).view(batch, time, -1, s.head_dim).transpose(1, 2)
        qk, v = qkv.split([s.heads + s.kv_heads, s.kv_heads], dim=1)
        half1, half2 = qk.chunk(2, dim=-1)
        qk = qk * cos + torch.cat([-half2, half1], dim=-1) * sin
        q, k = qk.split([s.heads, s.kv_heads], dim=1)
        out = self.attend(q, k, v).view(batch, s.heads, time, s.head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from ``q`` (batch, heads, time, dim) to ``k`` and ``v`` (batch, kv_heads, time, dim).

        Returns (batch, kv_heads, heads / kv_heads * time, dim). Plain products are about twice as fast
        here as ``scaled_dot_product_attention``, whose CPU kernel is slow for small heads in bfloat16.
        """
        batch, kv_heads, time, dim = k.shape
        mask = torch.full((time, time), -torch.inf, dtype=q.dtype).triu(1)
        scores = q.reshape(batch, kv_heads, -1, dim) @ k.mT * dim**-0.5
        scores = scores.view(batch, kv_heads, -1, time, time) + mask
        return scores.softmax(-1).view(batch, kv_heads, -1, time) @ v


class MLP(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.down_proj = nn.Linear(s.intermediate, s.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., hidden) to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer: attention, then the feed-forward network."""

    def __init__(self, s: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden, s.norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, s.norm_eps)
        self.mlp = MLP(s)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map ``x`` (batch, time, hidden) to the same shape."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """The language model; parameters are float32."""

    def __init__(self, s: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Block(s, dropout) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.hidden, s.norm_eps)
        self.dropout = nn.Dropout(dropout)
        inverse = s.rope_theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angles = torch.outer(torch.arange(s.context), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=0.02 if "embed" in name else s.hidden**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (batch, time) to logits (batch, time, vocab)."""
        x = self.dropout(self.embed_tokens(ids))
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        if torch.is_autocast_enabled("cpu"):
            cos, sin = cos.bfloat16(), sin.bfloat16()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)
