"""The compiled kernel for prompts against attention in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paged_cache import DTYPES, PagedCache, close_in, randn

from vllm_ext import _custom_ops

pytestmark = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))


def assert_attends(
    cache: PagedCache, counts: list[int], query: torch.Tensor, window: int = 0, cap: float = 0.0
) -> None:
    rows = torch.arange(len(counts)).flip(0)

    attended = cache.prefill(query, counts, rows, sliding_window=window, logits_soft_cap=cap)

    queries = query.split(counts)
    expected = torch.cat([cache.expected(row, q, window, cap) for row, q in enumerate(queries)])
    torch.testing.assert_close(attended.double(), expected, **close_in(query.dtype, 1e-4, 1e-5))


@settings(max_examples=120, database=None, derandomize=True)
@given(
    requests=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 70)), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1), (8, 1), (20, 1)]),
    head_size=st.sampled_from([1, 8, 40, 64, 80, 128]),
    block_size=st.sampled_from([1, 4, 16, 24, 128]),
    window=st.sampled_from([0, 1, 5, 33, 100]),
    cap=st.sampled_from([0.0, 0.7]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_each_token_attends_to_what_was_stored_up_to_it(
    requests, heads, head_size, block_size, window, cap, dtype, seed
):
    """Requests of so many tokens before, and so many now. What was never stored is NaN."""
    num_heads, kv_heads = heads
    counts = [new for _, new in requests]
    cache = PagedCache([sum(request) for request in requests], kv_heads, head_size, block_size, seed, dtype)
    width = num_heads * head_size
    query = randn(sum(counts), width + 3, seed=seed, dtype=dtype)[:, :width].unflatten(1, (num_heads, head_size))

    assert_attends(cache, counts, query, window, cap)


@pytest.mark.parametrize(("before", "new"), [(0, 1100), (1000, 100), (1099, 1)])
@pytest.mark.parametrize("window", [0, 300])
def test_a_long_prompt_is_attended_to_in_tiles(before, new, window):
    cache = PagedCache([before + new], 2, 64, 16, seed=1)

    assert_attends(cache, [new], randn(new, 4, 64), window)


@pytest.mark.parametrize("head_size", [256, 513, 2000])
def test_a_head_may_be_large(head_size):
    cache = PagedCache([130], 1, head_size, 16, seed=1)

    assert_attends(cache, [130], randn(130, 2, head_size) / head_size**0.5)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_share_requests_of_any_length(threads):
    before = torch.get_num_threads()
    cache = PagedCache([400, 2, 90, 30], 3, 16, 16, seed=1)
    torch.set_num_threads(threads)
    try:
        assert_attends(cache, [400, 2, 60, 29], randn(491, 3, 16))
    finally:
        torch.set_num_threads(before)


def test_scores_of_any_size_are_weighed():
    """The softmax is corrected span by span: the highest score of all may come last, and far above the others."""
    cache = PagedCache([250], 1, 8, 4, seed=1)
    for scale in (1e-3, 1.0, 3e3):
        query = randn(250, 2, 8) * scale

        expected = cache.expected(0, query)
        torch.testing.assert_close(
            cache.prefill(query, [250], torch.tensor([0])).double(), expected, rtol=1e-3, atol=1e-3
        )


def test_only_tokens_of_the_requests_that_are_asked_for_are_written():
    counts = [5, 1, 40]
    cache = PagedCache([9, 20, 40], 2, 8, 4, seed=1)
    query = randn(46, 4, 8)

    first, second, third = cache.prefill(query, counts, torch.tensor([2, 0])).split(counts)

    assert second.isnan().all()
    torch.testing.assert_close(first.double(), cache.expected(0, query[:5]), **close_in(query.dtype, 1e-4, 1e-5))
    torch.testing.assert_close(third.double(), cache.expected(2, query[6:]), **close_in(query.dtype, 1e-4, 1e-5))


def test_no_request_is_no_work():
    cache = PagedCache([9], 2, 8, 4, seed=1)

    assert cache.prefill(randn(3, 4, 8), [3], torch.tensor([], dtype=torch.int64)).isnan().all()
