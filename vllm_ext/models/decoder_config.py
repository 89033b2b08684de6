"""What the decoders of the Llama family differ in, read from ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.errors import CheckpointError, UnsupportedModel, listing
from vllm_ext.layers.activation import GATED_ACTIVATIONS

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder of the family: sizes, and which of the optional parts it has.

    Args:
        head_size: numbers in a head.
        windows: by layer: how many tokens a token sees, itself among them; ``None`` for all before it.
        qkv_bias, o_bias, mlp_bias: whether the projections of query, key and value, of the output, and of the
            feed-forward have biases.
        qk_norm: whether each head of query and key is normalised before it is rotated.
        hidden_act: of the gate, by the name in ``config.json``.
        is_causal: whether a token sees those before it only; else all of the prompt, for embeddings.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    hidden_act: str = "silu"
    is_causal: bool = True

    @classmethod
    def read(
        cls,
        config: HFConfig,
        *,
        num_kv_heads: int | None = None,
        head_size: int | None = None,
        windows: tuple[int | None, ...] | None = None,
        **parts: bool,
    ) -> DecoderConfig:
        """The keys that all share, and ``parts`` as the family has them.

        Args:
            num_kv_heads, head_size: where the keys are absent; as many as heads, and ``hidden_size / num_heads``, if
                omitted.
            windows: none if omitted.

        Raises:
            CheckpointError: a size is missing or no positive number, or heads do not share KV heads evenly.
            UnsupportedModel: an activation that no layer has, or windows in both directions.
        """
        if (activation := config.get("hidden_act", "silu")) not in GATED_ACTIVATIONS:
            raise UnsupportedModel(
                f"{config.source}: hidden_act {activation!r} is not supported for {_name(config)}; supported: "
                f"{listing(GATED_ACTIVATIONS)}"
            )
        hidden_size, num_heads = config.positive_int("hidden_size"), config.positive_int("num_attention_heads")
        # Null stands for as many, and an absent key for what the format takes for granted.
        if getattr(config, "num_key_value_heads", num_kv_heads) is None:
            num_kv_heads = num_heads
        num_kv_heads = config.positive_int("num_key_value_heads", num_kv_heads)
        if num_heads % num_kv_heads:
            raise CheckpointError(f"{config.source}: {num_heads} heads cannot share {num_kv_heads} KV heads evenly")
        is_causal = bool(config.get("is_causal", True))
        if not is_causal and windows and any(windows):
            raise UnsupportedModel(
                f"{config.source}: is_causal is false, and a sliding window in both directions no layer has"
            )
        return cls(
            hidden_size=hidden_size,
            intermediate_size=config.positive_int("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=config.positive_int("head_dim", head_size or hidden_size // num_heads),
            vocab_size=config.positive_int("vocab_size"),
            rms_norm_eps=config.positive_number("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            windows=windows or (None,) * config.positive_int("num_hidden_layers"),
            hidden_act=activation,
            is_causal=is_causal,
            **parts,
        )


def window_of_all_layers(config: HFConfig, default: int | None) -> tuple[int | None, ...]:
    """``sliding_window`` for each layer; null stands for none, and ``default`` where the key is absent."""
    window = getattr(config, "sliding_window", default)
    if window is not None:
        window = config.positive_int("sliding_window", default)
    return (window,) * config.positive_int("num_hidden_layers")


def windows_by_layer_type(config: HFConfig) -> tuple[int | None, ...]:
    """``sliding_window`` for the layers that ``layer_types`` names, or else those from ``max_window_layers`` on.

    Without ``use_sliding_window`` no layer has one.

    Raises:
        CheckpointError: ``layer_types`` is no list with an entry for each layer.
        UnsupportedModel: a type other than full and sliding attention.
    """
    num_layers = config.positive_int("num_hidden_layers")
    types: Any = config.get("layer_types")
    if types is None:
        first = config.get("max_window_layers", 28)
        types = [SLIDING if i >= first else FULL for i in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers:
        raise CheckpointError(
            f"{config.source}: layer_types is {types!r}; it takes a list with a type for each of {num_layers} layers"
        )
    if unknown := [kind for kind in types if kind not in (FULL, SLIDING)]:
        raise UnsupportedModel(
            f"{config.source}: layer type {unknown[0]!r} is not supported for {_name(config)}; supported: {FULL}, "
            f"{SLIDING}"
        )
    # Written down even where it is not in use.
    window = window_of_all_layers(config, 4096)[0] if config.get("use_sliding_window", False) else None
    return tuple(window if kind == SLIDING else None for kind in types)


def _name(config: HFConfig) -> str:
    names = config.get("architectures") or ["this model"]
    return str(names[0])
