"""Qwen2: Llama with biases on query, key and value, and a sliding window in some layers where it is switched on."""

from __future__ import annotations

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.models.decoder import DecoderForCausalLM
from vllm_ext.models.decoder_config import DecoderConfig, windows_by_layer_type


class Qwen2ForCausalLM(DecoderForCausalLM):
    """Qwen2 and Qwen2.5."""

    @classmethod
    def read_config(cls, config: HFConfig) -> DecoderConfig:
        # What the format takes for granted where a key is absent.
        return DecoderConfig.read(config, num_kv_heads=32, windows=windows_by_layer_type(config), qkv_bias=True)
