"""Llama: biases where ``attention_bias`` and ``mlp_bias`` say so, and every token sees all before it."""

from __future__ import annotations

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.models.decoder import DecoderForCausalLM
from vllm_ext.models.decoder_config import DecoderConfig


class LlamaForCausalLM(DecoderForCausalLM):
    """Llama 1 to 3."""

    @classmethod
    def read_config(cls, config: HFConfig) -> DecoderConfig:
        bias = bool(config.get("attention_bias", False))
        return DecoderConfig.read(config, qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))
