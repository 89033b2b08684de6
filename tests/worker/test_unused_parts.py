"""Parts of a platform that no step uses are a warning, and never passed over in silence."""

from __future__ import annotations

import logging

import pytest
from support.hook_platform import install_platform

from vllm_ext import LLM, SamplingParams

BACKEND = """
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.contracts.kv_cache import KVCacheLayout


class Backend(SDPABackend):
    \"\"\"As for vLLM before it had layouts.\"\"\"

    @staticmethod
    def get_name():
        return "NPU_ATTN"

    @classmethod
    def supported_kv_cache_layouts(cls):
        return {layouts}

    @staticmethod
    def get_kv_cache_shape(num_blocks, block_size, num_kv_heads, head_size, cache_dtype_str="auto"):
        return (2, num_blocks, block_size, num_kv_heads, head_size)


class Wrapper:
    pass
"""
ANSWERS = """

Npu.get_attn_backend_cls = classmethod(lambda cls, *args, **kwargs: "acme_attention.Backend")
"""
WRAPPER = """
Npu.get_static_graph_wrapper_cls = classmethod(lambda cls: {wrapper!r})
"""
SHAPE = (
    "attention backend acme_attention.Backend defines get_kv_cache_shape(), which is not asked for, here as in vLLM "
    "0.32: a layer's KV cache is [blocks, block_size, kv_heads, 2 * head_size], by the layout LBNHC. "
    "supported_kv_cache_layouts() says which layouts it can read"
)
REPLAYED = (
    "platform 'npu' has the static graph wrapper acme_attention.Wrapper, and no step is replayed: "
    "get_cudagraph_support() of the metadata builder of attention backend NPU_ATTN says NEVER"
)


@pytest.fixture
def said(plugins, random_llama, caplog):
    """Starts an engine on platform ``npu``; what the worker warned of."""

    def start(layouts: str, extra: str = "") -> list[str]:
        install_platform(plugins, extra=ANSWERS + extra)
        plugins.distribution("acme-attention", {}, {"acme_attention.py": BACKEND.replace("{layouts}", layouts)})
        with caplog.at_level(logging.WARNING), LLM(random_llama, platform="npu"):
            return [record.getMessage() for record in caplog.records if "worker" in record.name]

    return start


def test_a_shape_that_a_backend_gives_in_place_of_layouts(plugins, random_llama, caplog):
    # Its forward() would fail on the shape that there is, which is not the point here.
    silent = "\nclass Impl(SDPABackend.get_impl_cls()):\n    def forward(self, *args):\n        return args[6]\n"
    gives = "\nBackend.get_impl_cls = staticmethod(lambda: Impl)\n"
    install_platform(plugins, extra=ANSWERS)
    code = BACKEND.replace("{layouts}", "None") + silent + gives
    plugins.distribution("acme-attention", {}, {"acme_attention.py": code})

    with LLM(random_llama, platform="npu") as llm:
        llm.generate([[1, 2]], SamplingParams(max_tokens=1))

    assert caplog.messages.count(SHAPE) == 1


def test_a_backend_for_both_is_told_nothing(said):
    assert said("(KVCacheLayout.LBHNC,)") == []


def test_a_wrapper_whose_backend_cannot_be_replayed(said):
    assert said("(KVCacheLayout.LBHNC,)", WRAPPER.format(wrapper="acme_attention.Wrapper")) == [REPLAYED]


def test_one_of_the_in_tree_platform_is_left_out_without_a_word(said):
    assert (
        said("(KVCacheLayout.LBHNC,)", WRAPPER.format(wrapper="vllm_ext.worker.kernel_graph.KernelGraphWrapper")) == []
    )
