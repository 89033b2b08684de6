"""What the compiled kernels would misread, or write beside, is refused before they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.paged_cache import PagedCache, randn

from vllm_ext import _custom_ops

pytestmark = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))

ONES, IDS = torch.ones(8), torch.arange(3)
CACHE = PagedCache([5, 9], 2, 8, 4, seed=1)


def change(function: Callable[..., Any], fitting: dict[str, Any], message: str, **changed: Any) -> Any:
    """A case: a call that fits but for one argument, and how it is refused."""
    (name,) = changed
    return pytest.param(function, fitting, changed, message, id=f"{function.__name__}-{name}-{message[:40]}")


NORM = {"x": randn(3, 8), "weight": ONES, "epsilon": 1e-5, "residual": randn(3, 8)}
GATE = {"x": randn(3, 8)}
ROPE = {"positions": IDS, "x": randn(3, 16), "cos_sin_cache": randn(3, 16), "head_size": 8}
TABLE = {"input_ids": IDS, "table": randn(3, 8)}
STORE = {
    "key": randn(3, 2, 8),
    "value": randn(3, 2, 8),
    "kv_cache": torch.zeros(2, 2, 4, 16),
    "slot_mapping": IDS,
}
ATTENTION = {
    "output": torch.empty(2, 4, 8),
    "query": randn(2, 4, 8),
    "kv_cache": CACHE.cache,
    "block_table": CACHE.table,
    "seq_lens": CACHE.seq_lens,
    "rows": IDS[:2],
    "scale": 1.0,
}
DECODE = {**ATTENTION, "tokens": IDS[:2]}
PREFILL = {**ATTENTION, "query_start_loc": IDS.int()}
DRAW = {
    "logits": randn(3, 8),
    "rows": IDS,
    "temperature": torch.ones(3),
    "top_k": torch.zeros(3, dtype=torch.int64),
    "top_p": torch.ones(3),
    "uniform": torch.zeros(3).double(),
}
apart = torch.zeros(16)[::2]
either_attention = [(_custom_ops.paged_attention_decode, DECODE), (_custom_ops.paged_attention_prefill, PREFILL)]

CASES = [
    change(_custom_ops.rms_norm, NORM, r"takes a weight \[8\], contiguous, given \[4\] with strides", weight=ONES[:4]),
    change(_custom_ops.rms_norm, NORM, r"a weight \[8\], contiguous, given \[8\] with strides \(2,\)", weight=apart),
    change(_custom_ops.rms_norm, NORM, r"a residual like x, \[3, 8\], .* given \[2, 8\]", residual=randn(2, 8)),
    change(_custom_ops.rms_norm, NORM, r"contiguous, given \[3, 8\] with strides \(1, 3\)", residual=randn(8, 3).T),
    change(_custom_ops.silu_and_mul, GATE, r"takes \[..., 2 \* size\], contiguous, given \[3, 7\]", x=randn(3, 7)),
    change(_custom_ops.silu_and_mul, GATE, r"given \[3, 8\] with strides \(9, 1\)", x=randn(3, 9)[:, :8]),
    change(_custom_ops.rotary_embedding, ROPE, r"dense rows \[2, heads \* 8\], given \[3, 16\]", positions=IDS[:2]),
    change(_custom_ops.rotary_embedding, ROPE, r"given \[3, 12\] with strides \(12, 1\)", x=randn(3, 12)),
    change(_custom_ops.rotary_embedding, ROPE, r"given \[3, 16\] with strides \(1, 3\)", x=randn(16, 3).T),
    change(_custom_ops.rotary_embedding, ROPE, r"\[positions, 16\], .* given \[3, 8\]", cos_sin_cache=randn(3, 8)),
    change(_custom_ops.rotary_embedding, ROPE, r"strides \(17, 1\)", cos_sin_cache=randn(3, 17)[:, :16]),
    change(_custom_ops.embedding, TABLE, r"in one dimension, contiguous, given \[1, 3\]", input_ids=IDS[None]),
    change(_custom_ops.embedding, TABLE, r"given \[2\] with strides \(2,\)", input_ids=IDS[::2]),
    change(_custom_ops.embedding, TABLE, r"a table \[rows, size\], .* strides \(1, 3\)", table=randn(8, 3).T),
    change(_custom_ops.reshape_and_cache, STORE, r"dense rows \[3, 2, 8\] for this cache, given", key=randn(3, 2, 9)),
    change(_custom_ops.reshape_and_cache, STORE, r"given \[3, 1, 8\] with strides", value=randn(3, 1, 8)),
    change(_custom_ops.reshape_and_cache, STORE, r"strides \(8, 24, 1\)", key=randn(2, 3, 8).transpose(0, 1)),
    change(_custom_ops.reshape_and_cache, STORE, r"dense rows \[2, 2, 8\] .* given \[3", slot_mapping=IDS[:2]),
    change(_custom_ops.reshape_and_cache, STORE, "a contiguous cache", kv_cache=torch.zeros(2, 4, 4, 16)[:, :2]),
    *(
        change(function, fitting, *message, **changed)
        for function, fitting in either_attention
        for message, changed in (
            (["take indices as int32 .* given torch.int64 on"], {"seq_lens": CACHE.seq_lens.long()}),
            (["table .* as int32, given torch.int64"], {"block_table": CACHE.table.long()}),
            (["table .* strides"], {"block_table": CACHE.table.T.contiguous().T}),
            ([r"dense queries \[tokens, n \* 2, 8\] .* given \[2, 3, 8\]"], {"query": randn(2, 3, 8)}),
            ([r"for this cache, given \[2, 4, 16\]"], {"query": randn(2, 4, 16)}),
            ([r"strides \(8, 16, 1\)"], {"query": randn(4, 2, 8).transpose(0, 1)}),
            ([r"an output like the query, \[2, 4, 8\], .* given \[1"], {"output": torch.empty(1, 4, 8)}),
            (["a contiguous cache"], {"kv_cache": torch.cat((CACHE.cache, CACHE.cache), 1)[:, :2]}),
        )
    ),
    change(_custom_ops.paged_attention_decode, DECODE, "as int64 .* given torch.int32", tokens=IDS[:2].int()),
    change(_custom_ops.paged_attention_prefill, PREFILL, "as int32 .* given torch.int64", query_start_loc=IDS),
    change(_custom_ops.draw_tokens, DRAW, r"one number for each of 3 draws, .* given \[2\]", temperature=ONES[:2]),
    change(_custom_ops.draw_tokens, DRAW, r"given \[3\] with strides \(2,\)", top_p=apart[:3]),
    change(_custom_ops.draw_tokens, DRAW, r"one number for each of 3 draws, .* given \[2\]", top_k=IDS[:2]),
    change(_custom_ops.draw_tokens, DRAW, r"given \[4\]", uniform=torch.zeros(4).double()),
    change(
        _custom_ops.draw_tokens, DRAW, r"logits \[rows, vocabulary\] .* given .* \[3, 0\]", logits=torch.zeros(3, 0)
    ),
]


@pytest.mark.parametrize(("function", "fitting", "changed", "message"), CASES)
def test_what_a_kernel_would_misread_is_refused(function, fitting, changed, message):
    function(**fitting)

    with pytest.raises(TypeError, match=message):
        function(**(fitting | changed))


@pytest.mark.skipif(not _custom_ops.linear_panel(torch.float32), reason="linear() needs AVX2")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out_features": 33}, r"packed weight of 33 rows or more, contiguous, given \[1, 8, \d+, 1\]"),
        ({"bias": ONES}, r"takes a bias \[4\], contiguous, given \[8\]"),
        ({"bias": apart[:4]}, r"takes a bias \[4\], contiguous, given \[4\] with strides \(2,\)"),
    ],
    ids=["rows", "bias", "distance"],
)
def test_a_product_of_what_does_not_fit_is_refused(changed, message):
    fitting = {"x": randn(2, 8), "packed": _custom_ops.pack_weight(randn(4, 8)), "bias": None, "out_features": 4}

    with pytest.raises(TypeError, match=message):
        _custom_ops.linear(**(fitting | changed))


@pytest.mark.parametrize("position", [-1, 3, 2**40])
def test_a_position_outside_of_the_table_is_an_error(position):
    """As it is in torch, whose part this is on other devices."""
    with pytest.raises(IndexError, match="rotary_embedding: an index is outside of the table"):
        _custom_ops.rotary_embedding(torch.tensor([0, position, 2]), randn(3, 16), randn(3, 16), 8)


@pytest.mark.parametrize("slot", [-1, 8, 2**40])
def test_a_slot_outside_of_the_cache_is_an_error_and_nothing_is_written_beside_it(slot):
    whole = torch.zeros(4, 2, 4, 16)
    cache = whole[1:3]

    with pytest.raises(IndexError, match="reshape_and_cache: an index is outside of the table"):
        _custom_ops.reshape_and_cache(torch.ones(1, 2, 8), torch.ones(1, 2, 8), cache, torch.tensor([slot]))

    assert not whole.any()
