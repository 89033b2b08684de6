"""Attention backends that tests name in the settings."""

from __future__ import annotations

from vllm_ext.attention.backends.sdpa import SDPABackend, SDPAImpl
from vllm_ext.contracts.attention import AttentionBackend


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


class ApartImpl(RecordingImpl):
    """Keeps what it is asked to store, and whether that was before it attended."""

    stored = None

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        assert not hasattr(self, "call"), "it is asked to store before it attends"
        self.stored = (layer, tuple(key.shape), tuple(value.shape), kv_cache, slot_mapping)


class ApartBackend(RecordingBackend):
    """Stores keys and values before ``forward``."""

    forward_includes_kv_cache_update = False

    @staticmethod
    def get_impl_cls():
        return ApartImpl


class SilentImpl(RecordingImpl):
    """Writes its result where it belongs, and returns nothing."""

    def forward(self, *args, **kwargs):
        super().forward(*args, **kwargs)


class SilentBackend(SDPABackend):
    @staticmethod
    def get_impl_cls():
        return SilentImpl


class OlderImpl(SDPAImpl):
    """With the constructor of an older version of vLLM."""

    def __init__(self, num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype):
        super().__init__(num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype)


class OlderBackend(SDPABackend):
    @staticmethod
    def get_impl_cls():
        return OlderImpl


class BackendWithoutImpl(SDPABackend):
    @staticmethod
    def get_impl_cls():
        return None


class PickyBackend(SDPABackend):
    @staticmethod
    def get_supported_head_sizes():
        return [64, 128]


class PlainBackend(SDPABackend):
    """Attention and nothing else."""

    supports_sliding_window = AttentionBackend.supports_sliding_window
    supports_logits_soft_cap = AttentionBackend.supports_logits_soft_cap
    supports_alibi_slopes = AttentionBackend.supports_alibi_slopes
    supports_sink = AttentionBackend.supports_sink


class ForgetfulBuilder(SDPABackend.get_builder_cls()):  # type: ignore[misc]
    """Makes metadata, and does not return it."""

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        super().build(common_prefix_len, common_attn_metadata, fast_build)


class BuildsNothing(SDPABackend):
    @staticmethod
    def get_builder_cls():
        return ForgetfulBuilder
