"""Llama and what shares its architecture: rotary positions, grouped-query attention, gated feed-forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from vllm_ext.attention.layer import Attention
from vllm_ext.contracts.vllm_config import HFConfig, VllmConfig
from vllm_ext.errors import UnsupportedModel
from vllm_ext.layers.activation import SiluAndMul
from vllm_ext.layers.layernorm import RMSNorm
from vllm_ext.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm_ext.layers.rotary_embedding import RotaryEmbedding, get_rope
from vllm_ext.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm_ext.models.weights import load_stacked_weights


class LlamaMLP(nn.Module):
    """Gate and up projection in one product, SiLU, down projection."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        hidden, intermediate = config.positive_int("hidden_size"), config.positive_int("intermediate_size")
        bias = config.get("mlp_bias", False)
        self.gate_up_proj = MergedColumnParallelLinear(hidden, [intermediate] * 2, bias)
        self.act_fn = SiluAndMul()
        self.down_proj = RowParallelLinear(intermediate, hidden, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_up_proj(x)))


class LlamaAttention(nn.Module):
    """Query, key and value in one product, rotation, attention, output projection."""

    def __init__(self, config: HFConfig, rotary_emb: RotaryEmbedding, prefix: str) -> None:
        super().__init__()
        hidden, num_heads = config.positive_int("hidden_size"), config.positive_int("num_attention_heads")
        head_size = rotary_emb.head_size
        bias = config.get("attention_bias", False)
        self.qkv_proj = QKVParallelLinear(
            hidden, head_size, num_heads, config.positive_int("num_key_value_heads", num_heads), bias
        )
        num_heads_here, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.q_size, self.kv_size = num_heads_here * head_size, num_kv_heads * head_size
        self.rotary_emb = rotary_emb
        self.attn = Attention(num_heads_here, head_size, head_size**-0.5, num_kv_heads, prefix=f"{prefix}.attn")
        self.o_proj = RowParallelLinear(num_heads * head_size, hidden, bias)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        qk, value = self.qkv_proj(hidden_states).split([self.q_size + self.kv_size, self.kv_size], dim=-1)
        # Query and key heads lie side by side and are rotated alike: one call for both.
        qk, _ = self.rotary_emb(positions, qk)
        query, key = qk.split([self.q_size, self.kv_size], dim=-1)
        return self.o_proj(self.attn(query, key, value))


class LlamaDecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm; the residual is added within the norms."""

    def __init__(self, config: HFConfig, rotary_emb: RotaryEmbedding, prefix: str) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, rotary_emb, f"{prefix}.self_attn")
        self.mlp = LlamaMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.get("rms_norm_eps", 1e-6))
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.get("rms_norm_eps", 1e-6))

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class LlamaModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        hidden = config.positive_int("hidden_size")
        head_size = config.positive_int("head_dim", hidden // config.positive_int("num_attention_heads"))
        rotary_emb = get_rope(config, head_size, vllm_config.model_config.max_model_len)
        self.embed_tokens = VocabParallelEmbedding(config.positive_int("vocab_size"), hidden)
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(config, rotary_emb, f"{prefix}.layers.{i}")
            for i in range(config.positive_int("num_hidden_layers"))
        )
        self.norm = RMSNorm(config.hidden_size, config.get("rms_norm_eps", 1e-6))

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden_states, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


class LlamaForCausalLM(nn.Module):
    """The model contract for Llama checkpoints of Hugging Face."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        if (activation := config.get("hidden_act", "silu")) != "silu":
            raise UnsupportedModel(
                f"{config.source}: hidden_act {activation!r} is not supported for Llama; only 'silu' is"
            )
        self.tied = bool(config.get("tie_word_embeddings", False))
        self.model = LlamaModel(vllm_config, f"{prefix}.model" if prefix else "model")
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        if self.tied:
            self.lm_head.tie_weights(self.model.embed_tokens)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.lm_head(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        stacked = {
            "q_proj": ("qkv_proj", "q"),
            "k_proj": ("qkv_proj", "k"),
            "v_proj": ("qkv_proj", "v"),
            "gate_proj": ("gate_up_proj", 0),
            "up_proj": ("gate_up_proj", 1),
        }
        ignored = ["rotary_emb.inv_freq", *(["lm_head.weight"] if self.tied else [])]
        return load_stacked_weights(self, weights, stacked, ignored)
