"""Blocks that lie wholly before a request's windows may belong to others by now: no backend lets that matter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_step import TOLERANCE, Setup

from vllm_ext import _custom_ops
from vllm_ext.attention.backends.cpu_attn import CPUAttentionBackend
from vllm_ext.attention.backends.reference import ReferenceBackend
from vllm_ext.attention.backends.sdpa import SDPABackend

needs_kernels = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))
BACKENDS = [ReferenceBackend, SDPABackend, pytest.param(CPUAttentionBackend, marks=needs_kernels)]
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=["reference", "sdpa", "cpu_attn"])

STEPS = {
    "decode": [(37, 1), (8, 1), (60, 1)],
    "chunk": [(30, 11)],
    "chunk of one window": [(44, 6), (45, 6), (46, 6)],
    "all in one step": [(0, 5), (41, 1), (24, 16), (2, 1), (50, 2)],
}


def assert_attends_to_its_windows(setup: Setup) -> None:
    outputs, _ = setup.run()

    for output, expected in zip(outputs, setup.expected(), strict=True):
        torch.testing.assert_close(output.double(), expected, atol=TOLERANCE[setup.dtype], rtol=0)


@each_backend
@pytest.mark.parametrize("window", [1, 4, 6, 9])
@pytest.mark.parametrize("step", STEPS)
def test_nan_of_others(backend, step, window):
    assert_attends_to_its_windows(Setup(STEPS[step], window=window, backend=backend, unseen=math.nan))


@pytest.mark.parametrize("backend", [ReferenceBackend, SDPABackend])
@pytest.mark.parametrize("step", STEPS)
def test_nan_of_others_beside_slopes_caps_and_sinks(backend, step):
    terms = {"slopes": [0.5, 0.25, 0.125, 0.0], "sinks": [0.5, -2.0, 3.0, 0.0], "soft_cap": 0.3}

    assert_attends_to_its_windows(Setup(STEPS[step], window=6, backend=backend, unseen=math.nan, **terms))


@pytest.mark.parametrize("step", STEPS)
def test_nan_of_others_where_a_platform_brings_the_backend(plugins, step):
    plugins.project("vllm_ext_dummy_platform")
    from vllm_ext_dummy_platform.my_dummy_attention import MyDummyAttention

    assert_attends_to_its_windows(Setup(STEPS[step], window=6, backend=MyDummyAttention, unseen=math.nan))


@each_backend
@settings(max_examples=60)
@given(
    requests=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40) | st.just(1)), min_size=1, max_size=6),
    block_size=st.integers(1, 20),
    window=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
def test_nan_of_others_over_random_lengths_and_block_tables(backend, requests, block_size, window, seed):
    sizes = {"block_size": block_size, "window": window, "seed": seed}

    assert_attends_to_its_windows(Setup(requests, backend=backend, unseen=math.nan, **sizes))


def test_a_backend_that_reads_them_is_noticed():
    """What the tests above are worth: hiding a NaN by a weight of 0 is not enough."""

    class ReadsAll(ReferenceBackend):
        @staticmethod
        def get_builder_cls():
            class Builder(ReferenceBackend.get_builder_cls()):
                def __init__(self, spec, *args):
                    super().__init__(replace(spec, sliding_window=None), *args)

            return Builder

    assert_attends_to_its_windows(Setup(STEPS["decode"], window=6, backend=ReadsAll))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_attends_to_its_windows(Setup(STEPS["decode"], window=6, backend=ReadsAll, unseen=math.nan))
