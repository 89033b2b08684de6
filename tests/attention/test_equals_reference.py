"""Each fast backend gives what the reference backend gives, over a grid of steps, heads, sizes, terms and dtypes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_step import Setup, assert_equals_reference

from vllm_ext import _custom_ops
from vllm_ext.attention.backends.cpu_attn import CPUAttentionBackend
from vllm_ext.attention.backends.sdpa import SDPABackend

STEPS = {
    "prefill": [(0, 7), (0, 1), (0, 33)],
    "decode": [(3, 1), (37, 1), (8, 1), (8, 1)],
    "chunked": [(9, 5), (1, 2), (30, 11)],
    "mixed": [(0, 5), (11, 1), (4, 16), (2, 1), (0, 1)],
}
HEADS = {"mha": (4, 4), "gqa": (4, 2), "mqa": (4, 1)}
HEAD_SIZES = [8, 64, 80]
BLOCK_SIZES = [1, 16, 20]
WINDOWS = [None, 1, 9, 100]
SOFT_CAPS = [None, 0.3]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SLOPES = [0.5, 0.25, 0.125, 0.0]
SINKS = [0.5, -2.0, 3.0, 0.0]

needs_kernels = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))
BACKENDS = [SDPABackend, pytest.param(CPUAttentionBackend, marks=needs_kernels)]
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=["sdpa", "cpu_attn"])
# The random lengths below have all dtypes too.
IN_SHORT = [pytest.param(dtype, marks=[] if dtype is torch.float32 else pytest.mark.slow) for dtype in DTYPES]
each_dtype = pytest.mark.parametrize("dtype", IN_SHORT)


@each_dtype
@each_backend
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("step", STEPS)
def test_the_grid(backend, step, heads, dtype):
    """One test has all sizes and terms of its step, so that a run says which kind of step is wrong."""
    for head_size, block_size, window, soft_cap in product(HEAD_SIZES, BLOCK_SIZES, WINDOWS, SOFT_CAPS):
        sizes = (*heads, head_size, block_size)
        assert_equals_reference(Setup(STEPS[step], *sizes, dtype, window=window, soft_cap=soft_cap, backend=backend))


@each_dtype
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("step", STEPS)
def test_slopes_and_sinks(step, heads, dtype):
    for slopes, sinks, window, soft_cap in product([None, SLOPES], [None, SINKS], [None, 9], SOFT_CAPS):
        terms = {"slopes": slopes, "sinks": sinks, "window": window, "soft_cap": soft_cap}
        assert_equals_reference(Setup(STEPS[step], *heads, dtype=dtype, **terms))


REQUESTS = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40) | st.just(1)), min_size=1, max_size=6)


@each_backend
@settings(max_examples=60)
@given(
    requests=REQUESTS,
    heads=st.sampled_from([*HEADS.values(), (8, 1)]),
    head_size=st.sampled_from([*HEAD_SIZES, 40, 128]),
    block_size=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    window=st.none() | st.integers(1, 80),
    soft_cap=st.none() | st.floats(0.1, 10),
    seed=st.integers(0, 2**31),
)
def test_random_lengths_and_block_tables(backend, requests, heads, dtype, **sizes_and_terms):
    assert_equals_reference(Setup(requests, *heads, dtype=dtype, backend=backend, **sizes_and_terms))


@settings(max_examples=40)
@given(
    requests=REQUESTS,
    block_size=st.integers(1, 40),
    slopes=st.none() | st.lists(st.floats(0, 1), min_size=4, max_size=4),
    sinks=st.none() | st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    window=st.none() | st.integers(1, 80),
    seed=st.integers(0, 2**31),
)
def test_slopes_and_sinks_over_random_lengths_and_block_tables(requests, block_size, slopes, sinks, window, seed):
    terms = {"slopes": slopes, "sinks": sinks, "window": window}

    assert_equals_reference(Setup(requests, block_size=block_size, seed=seed, **terms))


def test_a_difference_is_noticed():
    """What the comparison is worth: a backend whose scale is off by a twentieth fails it."""

    class ScaledTooMuch(SDPABackend):
        @staticmethod
        def get_impl_cls():
            class Impl(SDPABackend.get_impl_cls()):
                def __init__(self, *args, **kwargs):
                    super().__init__(*args, **kwargs)
                    self.scale *= 1.05

            return Impl

    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_equals_reference(Setup(STEPS["decode"], backend=ScaledTooMuch))
