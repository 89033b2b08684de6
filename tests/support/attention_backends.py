"""Attention backends that tests name in the settings."""

from __future__ import annotations

from vllm_ext.attention.backends.sdpa import SDPABackend, SDPAImpl


class RecordingImpl(SDPAImpl):
    """Keeps what it is called with, and answers ones."""

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, **kwargs):
        self.call = (layer, tuple(query.shape), tuple(key.shape), tuple(value.shape), kv_cache, attn_metadata)
        return output.fill_(1)

    def process_weights_after_loading(self, act_dtype):
        self.act_dtype = act_dtype


class RecordingBackend(SDPABackend):
    @staticmethod
    def get_impl_cls():
        return RecordingImpl


class PickyBackend(SDPABackend):
    @staticmethod
    def get_supported_head_sizes():
        return [64, 128]
