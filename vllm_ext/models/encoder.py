"""The encoder that BERT and its relatives share: learned positions, attention in both directions, norms after parts.

Parameters have the names of the checkpoints of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vllm_ext.attention.layer import EncoderOnlyAttention
from vllm_ext.contracts.vllm_config import HFConfig, VllmConfig
from vllm_ext.errors import CheckpointError, UnsupportedModel, listing
from vllm_ext.layers.activation import ACTIVATIONS, get_act_fn
from vllm_ext.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm_ext.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm_ext.models.configured import ConfiguredModel
from vllm_ext.models.weights import load_stacked_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """An encoder of the family, read from ``config.json``.

    Args:
        position_offset: index of the first token's position in the table of positions.
        type_vocab_size: kinds of tokens, such as those of a first and of a second text.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    vocab_size: int
    num_positions: int
    position_offset: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str

    @property
    def num_kv_heads(self) -> int:
        """As many as heads: none is shared."""
        return self.num_heads

    @classmethod
    def read(cls, config: HFConfig, *, position_offset: int = 0) -> EncoderConfig:
        """The encoder that ``config`` describes.

        Raises:
            CheckpointError: a size is missing or no positive number, heads do not divide the hidden size, or
                ``layer_norm_eps`` is no number.
            UnsupportedModel: an activation, or a kind of position embedding, that no layer has.
        """
        activation = config.get("hidden_act", "gelu")
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise UnsupportedModel(
                f"{config.source}: hidden_act {activation!r} is not supported; supported: {listing(ACTIVATIONS)}"
            )
        if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
            raise UnsupportedModel(
                f"{config.source}: position_embedding_type {kind!r} is not supported; supported: absolute"
            )
        if config.get("is_decoder", False):
            raise UnsupportedModel(
                f"{config.source}: is_decoder is true, and an encoder's tokens see all of the prompt"
            )
        epsilon = config.get("layer_norm_eps", 1e-12)
        if not isinstance(epsilon, int | float) or isinstance(epsilon, bool) or epsilon < 0:
            raise CheckpointError(f"{config.source}: layer_norm_eps is {epsilon!r}; it takes a number from 0 on")
        hidden_size, num_heads = config.positive_int("hidden_size"), config.positive_int("num_attention_heads")
        if hidden_size % num_heads:
            raise CheckpointError(f"{config.source}: hidden_size {hidden_size} is no multiple of {num_heads} heads")
        return cls(
            hidden_size=hidden_size,
            intermediate_size=config.positive_int("intermediate_size"),
            num_heads=num_heads,
            num_layers=config.positive_int("num_hidden_layers"),
            vocab_size=config.positive_int("vocab_size"),
            num_positions=config.positive_int("max_position_embeddings"),
            position_offset=position_offset,
            type_vocab_size=config.positive_int("type_vocab_size", 2),
            layer_norm_eps=epsilon,
            hidden_act=activation,
        )


class EncoderEmbedding(nn.Module):
    """Token, position and kind of token, summed and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.word_embeddings = VocabParallelEmbedding(config.vocab_size, hidden)
        self.position_embeddings = nn.Embedding(config.num_positions, hidden)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, config.layer_norm_eps)
        self._offset = config.position_offset

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor:
        types = self.token_type_embeddings
        kinds = types.weight[0] if token_type_ids is None else types(token_type_ids)
        return self.LayerNorm(
            self.word_embeddings(input_ids) + self.position_embeddings(positions + self._offset) + kinds
        )


class SelfAttention(nn.Module):
    """Query, key and value in one product, then attention."""

    def __init__(self, config: EncoderConfig, prefix: str) -> None:
        super().__init__()
        head_size = config.hidden_size // config.num_heads
        self.qkv_proj = QKVParallelLinear(config.hidden_size, head_size, config.num_heads, config.num_heads, bias=True)
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.attn = EncoderOnlyAttention(num_heads, head_size, head_size**-0.5, num_kv_heads, f"{prefix}.attn")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.attn(*self.qkv_proj(hidden_states).chunk(3, dim=-1))


class Output(nn.Module):
    """A projection back to the hidden size, added to what the part began with, and normalised."""

    def __init__(self, config: EncoderConfig, input_size: int, input_part: range | None = None) -> None:
        super().__init__()
        self.dense = RowParallelLinear(input_size, config.hidden_size, True, input_part)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(hidden_states) + residual)


class EncoderAttention(nn.Module):
    """Attention and its projection."""

    def __init__(self, config: EncoderConfig, prefix: str) -> None:
        super().__init__()
        # The checkpoint's name for it.
        self.self = SelfAttention(config, f"{prefix}.self")
        self.output = Output(config, config.hidden_size, self.self.qkv_proj.query_columns)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(self.self(hidden_states), hidden_states)


class Intermediate(nn.Module):
    """The wide half of the feed-forward part."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = ColumnParallelLinear(config.hidden_size, config.intermediate_size, True)
        self.act_fn = get_act_fn(config.hidden_act)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.act_fn(self.dense(hidden_states))


class EncoderLayer(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, config: EncoderConfig, prefix: str) -> None:
        super().__init__()
        self.attention = EncoderAttention(config, f"{prefix}.attention")
        self.intermediate = Intermediate(config)
        self.output = Output(config, config.intermediate_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = self.attention(hidden_states)
        return self.output(self.intermediate(attended), attended)


class EncoderStack(nn.Module):
    """The layers, under the checkpoint's name for them."""

    def __init__(self, config: EncoderConfig, prefix: str) -> None:
        super().__init__()
        self.layer = nn.ModuleList(EncoderLayer(config, f"{prefix}.layer.{i}") for i in range(config.num_layers))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            hidden_states = layer(hidden_states)
        return hidden_states


class PoolingEncoder(ConfiguredModel, nn.Module):
    """The contract of a pooling model, for checkpoints of Hugging Face; a family reads its ``config.json``, and sets
    ``pooler``.
    """

    is_pooling_model: ClassVar[bool] = True
    checkpoint_prefix: ClassVar[str]
    """What names begin with where the checkpoint is of a model with a head."""
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {"qkv_proj": ["query", "key", "value"]}
    ignored: ClassVar[tuple[str, ...]] = ("cls.", "lm_head.", "pooler.")
    """Beginnings of names that the model has no use for."""
    renamed: ClassVar[tuple[str, str]] = ("", "")
    """A beginning of the checkpoint's names, and what it is called here."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config: EncoderConfig = self.read_config(vllm_config.model_config.hf_config)
        self.embeddings = EncoderEmbedding(self.config)
        self.encoder = EncoderStack(self.config, f"{prefix}.encoder" if prefix else "encoder")

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embeddings.word_embeddings(input_ids)

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.encoder(self.embeddings(input_ids, positions, token_type_ids))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        stacked = {"query": ("qkv_proj", "q"), "key": ("qkv_proj", "k"), "value": ("qkv_proj", "v")}
        return load_stacked_weights(self, self._renamed(weights), stacked)

    def _renamed(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors by the names that they have here, without those of parts that are not here."""
        for name, tensor in weights:
            name = name.removeprefix(self.checkpoint_prefix)
            # TensorFlow's names, in old checkpoints.
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            if name.startswith(self.ignored) or name.endswith(("position_ids", "token_type_ids")):
                continue
            theirs, ours = self.renamed
            yield (ours + name.removeprefix(theirs) if theirs and name.startswith(theirs) else name), tensor
