"""Qwen3: Llama with a norm on each head of query and key, and heads whose size does not depend on their number."""

from __future__ import annotations

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.models.decoder import DecoderForCausalLM
from vllm_ext.models.decoder_config import DecoderConfig, windows_by_layer_type


class Qwen3ForCausalLM(DecoderForCausalLM):
    """The dense models of Qwen3."""

    @classmethod
    def read_config(cls, config: HFConfig) -> DecoderConfig:
        bias = bool(config.get("attention_bias", False))
        # What the format takes for granted where a key is absent.
        return DecoderConfig.read(
            config,
            num_kv_heads=32,
            head_size=128,
            windows=windows_by_layer_type(config),
            qkv_bias=bias,
            o_bias=bias,
            qk_norm=True,
        )
