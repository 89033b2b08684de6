"""Mistral: Llama without biases, and with one sliding window for all layers, or none."""

from __future__ import annotations

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.models.decoder import DecoderForCausalLM
from vllm_ext.models.decoder_config import DecoderConfig, window_of_all_layers


class MistralForCausalLM(DecoderForCausalLM):
    """Mistral 7B and its successors of the same architecture."""

    @classmethod
    def read_config(cls, config: HFConfig) -> DecoderConfig:
        # What the format takes for granted where a key is absent.
        return DecoderConfig.read(config, num_kv_heads=8, windows=window_of_all_layers(config, default=4096))
