"""The compiled kernels against torch in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paged_cache import DTYPES, PagedCache, close_in, randn

from vllm_ext import _custom_ops

needs_kernels = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))
pytestmark = needs_kernels
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
ROWS_AND_SIZES = [(1, 64), (3, 48), (16, 512), (100, 333)]


@each_dtype
@pytest.mark.parametrize(("rows", "size"), ROWS_AND_SIZES)
class TestRowByRow:
    def test_rms_norm(self, rows, size, dtype):
        x, weight = randn(rows, size, dtype=dtype), randn(size, seed=1, dtype=dtype)

        normed = _custom_ops.rms_norm(x, weight, 1e-3, None)

        expected = F.rms_norm(x.double(), (size,), weight.double(), 1e-3)
        torch.testing.assert_close(normed.double(), expected, **close_in(dtype, 1e-5, 1e-5))

    def test_rms_norm_of_heads_that_lie_within_wider_rows(self, rows, size, dtype):
        wide, weight = randn(rows, 5 * size, dtype=dtype), randn(size, seed=1, dtype=dtype)
        x = wide.unflatten(1, (5, size))[:, 1:4]

        normed = _custom_ops.rms_norm(x, weight, 1e-3, None)

        expected = F.rms_norm(x.double(), (size,), weight.double(), 1e-3)
        torch.testing.assert_close(normed.double(), expected, **close_in(dtype, 1e-5, 1e-5))

    def test_rms_norm_adds_to_the_residual_first(self, rows, size, dtype):
        x, residual = randn(rows, size, dtype=dtype), randn(rows, size, seed=2, dtype=dtype)
        weight = randn(size, seed=1, dtype=dtype)
        total = x + residual

        normed = _custom_ops.rms_norm(x, weight, 1e-3, residual)

        assert torch.equal(residual, total)
        expected = F.rms_norm(total.double(), (size,), weight.double(), 1e-3)
        torch.testing.assert_close(normed.double(), expected, **close_in(dtype, 1e-5, 1e-5))

    def test_silu_and_mul(self, rows, size, dtype):
        x = randn(rows, 2 * size, dtype=dtype) * 5
        gate, up = x.double().chunk(2, dim=-1)

        gated = _custom_ops.silu_and_mul(x).double()

        torch.testing.assert_close(gated, F.silu(gate) * up, **close_in(dtype, 1e-5, 1e-5))


@each_dtype
@pytest.mark.parametrize("head_size", [8, 64, 80])
@pytest.mark.parametrize("tokens", [1, 200])
def test_rotary_embedding_turns_each_pair_by_its_angle(head_size, tokens, dtype):
    half = head_size // 2
    positions = torch.arange(tokens).flip(0) * 3
    angles = torch.outer(torch.arange(700.0), 10000.0 ** -(torch.arange(half) / half))
    cache = torch.cat((angles.cos(), angles.cos(), -angles.sin(), angles.sin()), dim=-1).to(dtype)
    x = randn(tokens, 5 * head_size, dtype=dtype)[:, : 3 * head_size]

    rotated = _custom_ops.rotary_embedding(positions, x, cache, head_size).view(tokens, 3, head_size)

    pairs = torch.complex(*x.double().reshape(tokens, 3, 2, half).unbind(2))
    # Cosines and sines as they are in the cache, where they may have been rounded.
    expected = pairs * torch.complex(angles.cos().to(dtype).double(), angles.sin().to(dtype).double())[positions, None]
    turned = torch.cat((expected.real, expected.imag), dim=-1)
    torch.testing.assert_close(rotated.double(), turned, **close_in(dtype, 1e-5, 1e-5))


@each_dtype
def test_embedding_takes_rows_of_the_table(dtype):
    table, ids = randn(7, 5, dtype=dtype), torch.tensor([6, 0, 6])

    assert torch.equal(_custom_ops.embedding(ids, table), table[ids])


@settings(max_examples=60, database=None, derandomize=True)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=20),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (10, 5), (48, 24), (6, 1), (20, 1), (40, 1)]),
    st.sampled_from([8, 64, 80, 128, 256]),
    st.sampled_from([1, 4, 16, 24]),
    st.sampled_from([0, 1, 5, 33]),
    st.sampled_from([0.0, 0.7]),
    st.sampled_from(DTYPES),
    st.integers(0, 2**16),
)
def test_decoding_attends_to_what_was_stored(lens, heads, head_size, block_size, window, cap, dtype, seed):
    """Nothing else: what was never stored is NaN here."""
    num_heads, kv_heads = heads
    cache = PagedCache(lens, kv_heads, head_size, block_size, seed, dtype)
    query = randn(len(lens), num_heads * head_size + 3, seed=seed, dtype=dtype)[:, : num_heads * head_size]
    query = query.unflatten(1, (num_heads, head_size))

    attended = cache.decode(query, sliding_window=window, logits_soft_cap=cap)

    expected = cache.expected_decode(query, window, cap)
    torch.testing.assert_close(attended.double(), expected, **close_in(dtype, 1e-4, 1e-4))


def test_a_long_context():
    cache = PagedCache([3000, 1], 2, 64, 16, seed=1)
    query = randn(2, 4, 64)

    torch.testing.assert_close(cache.decode(query).double(), cache.expected_decode(query), rtol=1e-4, atol=1e-4)


def test_scores_of_any_size_are_weighed():
    """The softmax is corrected block by block: the highest score of all may come last, and far above the others."""
    cache = PagedCache([50], 1, 8, 4, seed=1)
    for scale in (1.0, 3e3):
        query = randn(1, 2, 8) * scale

        torch.testing.assert_close(cache.decode(query).double(), cache.expected_decode(query), rtol=1e-3, atol=1e-3)


def test_the_floating_point_mode_of_the_process_stays_as_it_is():
    """A library built for speed alone may turn off small numbers everywhere."""
    program = "import torch; from vllm_ext import _custom_ops; print((torch.tensor([1e-40]) * 1).item() > 0)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "True\n"


def test_more_than_one_openmp_library_is_a_reason_not_to_use_them(monkeypatch):
    monkeypatch.setattr(_custom_ops, "_loaded_openmp", lambda: {"libgomp.so.1", "libiomp5.so"})

    # Not what is kept for the process, which other tests go by.
    why_missing = _custom_ops.why_missing.__wrapped__
    assert why_missing() == "two OpenMP libraries are loaded: libgomp.so.1, libiomp5.so"


def test_another_dtype_is_refused():
    with pytest.raises(TypeError, match=r"take float32, bfloat16 or float16, .* given torch.float64 on cpu"):
        _custom_ops.silu_and_mul(torch.ones(1, 2).double())


def test_two_dtypes_in_a_call_are_refused():
    with pytest.raises(TypeError, match=r"given torch.bfloat16 on cpu, and torch.float32$"):
        _custom_ops.rms_norm(randn(1, 4), randn(4, dtype=torch.bfloat16), 1e-5, None)


@each_dtype
class TestArgmax:
    @settings(max_examples=60)
    @given(
        st.integers(1, 5), st.sampled_from([1, 2, 100, 1023, 1024, 1025, 5000]), st.integers(0, 2**16), st.booleans()
    )
    def test_the_first_of_the_largest_is_found(self, dtype, rows, size, seed, few_values):
        x = randn(rows, size + 3, seed=seed)[:, 3:]
        x = (x.round() if few_values else x).to(dtype)

        # torch says nothing of which it takes of several.
        assert _custom_ops.argmax(x).tolist() == x.float().numpy().argmax(axis=-1).tolist()

    def test_numbers_of_all_kinds_are_in_order(self, dtype):
        inf, nan, tiny = torch.inf, torch.nan, torch.finfo(dtype).smallest_normal
        rows = [
            [-inf, -inf, -inf],
            [-inf, -1, -2],
            [-0.0, 0.0, -1],
            [0.0, tiny, 0.5 * tiny],
            [1, inf, inf],
            [inf, -nan, nan],
        ]

        assert _custom_ops.argmax(torch.tensor(rows, dtype=dtype)).tolist() == [0, 1, 0, 1, 1, 1]

    @pytest.mark.parametrize("shape", [(2, 0), (3, 2)], ids=["empty", "strides"])
    def test_what_it_would_misread_is_refused(self, dtype, shape):
        with pytest.raises(TypeError, match="argmax takes dense rows of some numbers"):
            _custom_ops.argmax(torch.zeros(shape, dtype=dtype) if 0 in shape else torch.zeros(shape, dtype=dtype).T)


halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@halves
def test_every_number_of_sixteen_bits_is_read_and_written(dtype):
    """Turned by no angle."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()]
    x = torch.stack((numbers, torch.zeros_like(numbers)), dim=1)
    cache = torch.tensor([[1, 1, 0, 0]], dtype=dtype)

    turned = _custom_ops.rotary_embedding(torch.zeros(len(x), dtype=torch.int64), x, cache, 2)

    assert torch.equal(turned, x)


@halves
def test_sums_are_rounded_as_torch_rounds_them(dtype):
    """Ties among them, to the even one; sums that are too large are infinite, and small ones have fewer bits."""
    few = torch.finfo(dtype).smallest_normal * torch.arange(1, 513) / 512
    numbers = torch.cat((randn(2**16) * 2.0 ** torch.arange(-32, 32).repeat(2**10), few.to(dtype).float()))
    first = numbers.to(dtype)
    ties = (first.float() * torch.finfo(dtype).eps / 2).to(dtype)
    infinite = torch.full((16,), torch.finfo(dtype).max, dtype=dtype)
    x, residual = torch.cat((first, first, infinite)), torch.cat((ties, first.flip(0), infinite))
    sums = x + residual

    _custom_ops.rms_norm(x[None], torch.ones_like(x), 1e-5, residual)

    assert torch.equal(residual, sums)
    assert residual.isinf().sum() >= 16


@halves
def test_what_is_not_a_number_stays_so(dtype):
    assert _custom_ops.silu_and_mul(torch.tensor([[torch.nan, 1.0]], dtype=dtype)).isnan().all()


def test_wrong_arguments_are_an_error():
    with pytest.raises(TypeError, match="rms_norm takes 11 arguments, given 2"):
        _custom_ops._C.rms_norm(1, 2)
    with pytest.raises(TypeError):
        _custom_ops._C.silu_and_mul("x", 1, 1, 1, 0, 1)
    assert not math.isnan(_custom_ops.silu_and_mul(torch.ones(1, 2)).item())


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.skipif(not _custom_ops.linear_panel(dtype), reason="linear() needs AVX2"))
        for dtype in DTYPES
    ],
)
class TestLinear:
    @settings(max_examples=60)
    @given(
        rows=st.integers(0, 220),
        out_features=st.sampled_from([1, 31, 32, 33, 64, 100]),
        in_features=st.sampled_from([1, 7, 64, 2048, 2049, 5000]),
        bias=st.booleans(),
        gap=st.sampled_from([0, 3]),
    )
    def test_it_is_the_product_with_the_weight(self, rows, out_features, in_features, bias, gap, dtype):
        if dtype is not torch.float32:
            in_features, gap = 2 * in_features, 2 * gap
        x = randn(rows, in_features + gap, dtype=dtype)[:, :in_features]
        weight = randn(out_features, in_features, seed=1, dtype=dtype)
        biases = randn(out_features, seed=2, dtype=dtype) if bias else None

        product = _custom_ops.linear(x, _custom_ops.pack_weight(weight), biases, out_features)

        expected = F.linear(x.double(), weight.double(), None if biases is None else biases.double())
        tolerance = 3e-6 * math.sqrt(in_features) * 4
        torch.testing.assert_close(product.double(), expected, **close_in(dtype, 1e-5, tolerance))

    @pytest.mark.parametrize("rows", [1, 6, 12, 13, 97])
    def test_a_row_is_the_same_whatever_it_is_multiplied_with(self, rows, dtype):
        x = randn(220, 5000, dtype=dtype)
        packed = _custom_ops.pack_weight(randn(40, 5000, seed=1, dtype=dtype))

        product = _custom_ops.linear(x[:rows], packed, None, 40)

        assert torch.equal(product, _custom_ops.linear(x, packed, None, 40)[:rows])

    def test_it_writes_nothing_beside_its_output(self, dtype):
        whole = torch.full((3, 9 * 33), torch.nan, dtype=dtype)
        out = whole[1].view(9, 33)
        packed = _custom_ops.pack_weight(randn(33, 8, dtype=dtype))

        x = randn(9, 8, dtype=dtype)
        element = _custom_ops.ELEMENTS[dtype]
        converted = torch.empty(9, 8)
        addresses = [tensor.data_ptr() for tensor in (out, x, packed)]
        room = converted.data_ptr() if _custom_ops._converts(dtype) else 0
        _custom_ops._C.linear(*addresses, 0, room, 9, 33, 8, 8, element, 2)

        assert not out.isnan().any()
        assert whole[0].isnan().all()
        assert whole[2].isnan().all()

    @pytest.mark.parametrize("x", [randn(2, 9), randn(8, 2).T], ids=["width", "strides"])
    def test_what_it_would_misread_is_refused(self, x, dtype):
        with pytest.raises(TypeError, match=r"linear takes dense \[rows, 8\]"):
            _custom_ops.linear(x.to(dtype), _custom_ops.pack_weight(randn(4, 8, dtype=dtype)), None, 4)

    def test_another_dtype_than_the_weights_is_refused(self, dtype):
        with pytest.raises(TypeError, match="the kernels take float32, bfloat16 or float16"):
            _custom_ops.linear(randn(2, 8).double(), _custom_ops.pack_weight(randn(4, 8, dtype=dtype)), None, 4)

    def test_sixteen_bits_are_read_by_twos(self, dtype):
        """So a weight of an odd width is not for this kernel, nor are rows at an odd distance."""
        apart = dtype is torch.float32
        assert _custom_ops.can_multiply(randn(4, 8, dtype=dtype))
        assert _custom_ops.can_multiply(randn(4, 7, dtype=dtype)) == apart
        if not apart:
            with pytest.raises(TypeError, match=r"linear takes dense \[rows, 8\]"):
                _custom_ops.linear(
                    randn(2, 9, dtype=dtype)[:, :8], _custom_ops.pack_weight(randn(4, 8, dtype=dtype)), None, 4
                )
