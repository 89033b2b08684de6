"""The decoder that Llama and its relatives share: rotary positions, grouped-query attention, gated feed-forward.

A family is a subclass of :class:`DecoderForCausalLM` that reads its :class:`DecoderConfig`; parameters have the names
of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import nn

from vllm_ext.attention.layer import Attention, EncoderOnlyAttention
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import UnsupportedModel
from vllm_ext.layers.activation import get_act_and_mul_fn
from vllm_ext.layers.layernorm import RMSNorm
from vllm_ext.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm_ext.layers.logits_processor import LogitsProcessor
from vllm_ext.layers.rotary_embedding import RotaryEmbedding, get_rope
from vllm_ext.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm_ext.models.configured import ConfiguredModel
from vllm_ext.models.decoder_config import DecoderConfig
from vllm_ext.models.weights import check_tied, load_stacked_weights

_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

_TOKENS_AT_ONCE = 512
"""On processors. What lies between the two products stays in their caches then, and is not new memory from the system
each time: 64 prompts of 20-100 tokens take 0.97 of the time (Zen 4, default model of ``tools/make_checkpoint.py``).
"""


class DecoderMLP(nn.Module):
    """Gate and up projection in one product, gated activation, down projection."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, intermediate, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = MergedColumnParallelLinear(hidden, [intermediate] * 2, bias)
        self.act_fn = get_act_and_mul_fn(config.hidden_act)
        self.down_proj = RowParallelLinear(intermediate, hidden, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > _TOKENS_AT_ONCE and x.is_cpu:
            return torch.cat([self.forward(part) for part in x.split(_TOKENS_AT_ONCE)])
        return self.down_proj(self.act_fn(self.gate_up_proj(x)))


class DecoderAttention(nn.Module):
    """Query, key and value in one product, norms where the family has them, rotation, attention, output projection."""

    def __init__(self, config: DecoderConfig, rotary_emb: RotaryEmbedding, window: int | None, prefix: str) -> None:
        super().__init__()
        hidden, self.head_size = config.hidden_size, config.head_size
        self.qkv_proj = QKVParallelLinear(
            hidden, self.head_size, config.num_heads, config.num_kv_heads, config.qkv_bias
        )
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.q_size, self.kv_size = num_heads * self.head_size, num_kv_heads * self.head_size
        self.has_norms = config.qk_norm
        if self.has_norms:
            self.q_norm = RMSNorm(self.head_size, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_size, config.rms_norm_eps)
        self.rotary_emb = rotary_emb
        sizes = num_heads, self.head_size, self.head_size**-0.5, num_kv_heads, f"{prefix}.attn"
        self.attn = (
            Attention(*sizes, per_layer_sliding_window=window) if config.is_causal else EncoderOnlyAttention(*sizes)
        )
        self.o_proj = RowParallelLinear(
            config.num_heads * self.head_size, hidden, config.o_bias, self.qkv_proj.query_columns
        )

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        qkv = self.qkv_proj(hidden_states)
        if self.has_norms:
            query, key, value = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
            query, key = self._normalise(self.q_norm, query), self._normalise(self.k_norm, key)
            query, key = self.rotary_emb(positions, query, key)
        else:
            # Query and key heads lie side by side and are rotated alike: one call for both.
            qk, value = qkv.split([self.q_size + self.kv_size, self.kv_size], dim=-1)
            qk, _ = self.rotary_emb(positions, qk)
            query, key = qk.split([self.q_size, self.kv_size], dim=-1)
        attended = self.attn(query, key, value)
        return self.o_proj(attended if rows is None else attended.index_select(0, rows))

    def _normalise(self, norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        """Each head by itself."""
        return norm(x.unflatten(-1, (-1, self.head_size))).flatten(1)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm; the residual is added within the norms.

    With ``rows`` only these tokens get an output: the others have done their part with their keys and values.
    """

    def __init__(self, config: DecoderConfig, rotary_emb: RotaryEmbedding, window: int | None, prefix: str) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(config, rotary_emb, window, f"{prefix}.self_attn")
        self.mlp = DecoderMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        rows: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states, rows)
        if rows is not None:
            residual = residual.index_select(0, rows)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class DecoderModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: DecoderConfig, rotary_emb: RotaryEmbedding, prefix: str) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, rotary_emb, window, f"{prefix}.layers.{i}") for i, window in enumerate(config.windows)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, logits_indices: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden_states, residual = self.embed_tokens(input_ids), None
        for layer in self.layers[:-1]:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, residual = self.layers[-1](positions, hidden_states, residual, logits_indices)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


class DecoderForCausalLM(ConfiguredModel, nn.Module):
    """The model contract for checkpoints of Hugging Face; a family says how its ``config.json`` is read."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    supports_logits_indices: ClassVar[bool] = True

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        hf_config, max_model_len = vllm_config.model_config.hf_config, vllm_config.model_config.max_model_len
        config: DecoderConfig = self.read_config(hf_config)
        if not config.is_causal and vllm_config.model_config.runner_type == "generate":
            raise UnsupportedModel(
                f"{hf_config.source}: is_causal is false: every token sees all of the prompt, so that none can be "
                "generated after it; set engine.runner to pooling for embeddings"
            )
        rotary_emb = get_rope(hf_config, config.head_size, max_model_len)
        self.tied = config.tie_word_embeddings
        self.model = DecoderModel(config, rotary_emb, f"{prefix}.model" if prefix else "model")
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        if self.tied:
            self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, logits_indices: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.model(input_ids, positions, logits_indices)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        stacked = {
            "q_proj": ("qkv_proj", "q"),
            "k_proj": ("qkv_proj", "k"),
            "v_proj": ("qkv_proj", "v"),
            "gate_proj": ("gate_up_proj", 0),
            "up_proj": ("gate_up_proj", 1),
        }
        return load_stacked_weights(self, _tied(weights) if self.tied else weights, stacked, ["rotary_emb.inv_freq"])


def _tied(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """``weights`` with the output layer as the embedding that it is: either name may be stored, or both."""
    first: tuple[torch.Tensor, str] | None = None
    for name, tensor in weights:
        if name not in (_EMBEDDING, _OUTPUT):
            yield name, tensor
        elif first is None:
            # A view of the mapped file, which takes no memory.
            first = tensor, name
            yield _EMBEDDING, tensor
        else:
            check_tied(tensor, *first)
