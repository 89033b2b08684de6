"""The compiled draw takes the tokens that the one in torch takes, up to a rounding of the probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ext import _custom_ops
from vllm_ext.worker.sampling import ops
from vllm_ext.worker.sampling.metadata import Choice

needs_kernels = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))
PROPERTY = settings(max_examples=100)
ROUNDING = 2e-6
"""By so much a sum of torch's probabilities may be wrong: they are float32."""
NEVER = float("-inf")
BELOW_1 = 1 - 2.0**-53
GRID = (np.arange(500) + 0.5) / 500
"""Random numbers that miss no token with a probability of 0.002."""

either_way = pytest.mark.parametrize(
    "draw", [pytest.param(ops.draw_tokens, id="kernel", marks=needs_kernels), ops.draw_tokens_native]
)


def choice_of(rows: list[int], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Choice:
    count = len(rows)
    return Choice(
        rows=np.array(rows, dtype=np.int64),
        temperature=np.full(count, temperature, dtype=np.float32),
        top_k=np.full(count, top_k, dtype=np.int64),
        top_p=np.full(count, top_p, dtype=np.float32),
        seeds=np.zeros(count, dtype=np.uint64),
        is_seeded=np.zeros(count, dtype=np.bool_),
        num_output_tokens=np.zeros(count, dtype=np.int64),
    )


def drawn(draw, logits: torch.Tensor, uniform=GRID, **values: float) -> list[int]:
    """Tokens of one row, ``[vocabulary]``, by random number."""
    choice = choice_of([0] * len(uniform), **values)
    rows = logits.unsqueeze(0) if draw is ops.draw_tokens else logits.repeat(len(uniform), 1)
    if draw is ops.draw_tokens_native:
        choice.rows[:] = np.arange(len(uniform))
    return draw(rows, choice, np.array(uniform, dtype=np.float64)).tolist()


def kept_in_torch(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """``[vocabulary]``"""
    kept = logits.unsqueeze(0) / torch.tensor([[temperature]])
    if top_k > 0:
        kept = ops.apply_top_k(kept, torch.tensor([[top_k]]))
    if top_p < 1:
        kept = ops.apply_top_p(kept, torch.tensor([[top_p]]))
    return kept[0]


def assert_draws_as_in_torch(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, rounding: float = ROUNDING
) -> None:
    """For a grid of random numbers and the ends of their range."""
    uniform = np.array([0.0, *GRID, BELOW_1])

    tokens = torch.tensor(drawn(ops.draw_tokens, logits, uniform, temperature=temperature, top_k=top_k, top_p=top_p))

    # Where a sum of probabilities lies within a rounding of top_p, the token there may be kept or not.
    limits = (top_p - rounding, top_p, top_p + rounding) if top_p < 1 else (1.0,)
    kept = [kept_in_torch(logits, temperature, top_k, limit) for limit in limits]
    assert any(are_where_sums_pass(tokens, uniform, each, rounding) for each in kept)


def are_where_sums_pass(tokens: torch.Tensor, uniform: np.ndarray, logits: torch.Tensor, rounding: float) -> bool:
    numbers, probs = torch.from_numpy(uniform), logits.double().softmax(-1)
    sums = probs.cumsum(-1)
    is_there = ((sums - probs)[tokens] <= numbers + rounding) & (sums[tokens] >= numbers - rounding)
    return bool((is_there & (logits[tokens] > NEVER)).all())


def different_logits(vocab: int, spread: float, seed: int) -> torch.Tensor:
    """As from a normal distribution, no two alike."""
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    return (torch.special.ndtri((order.double() + 0.5) / vocab) * spread).float()


seeds = st.integers(0, 2**32)
vocabs = st.sampled_from([1, 2, 7, 63, 64, 65, 300, 4999])
spreads = st.sampled_from([0.01, 1.0, 3.0, 20.0, 1e4])
temperatures = st.one_of(st.just(1.0), st.floats(2.0**-13, 4.0, width=32))
top_ks = st.one_of(st.just(0), st.just(-1), st.integers(1, 6000), st.integers(1, 80))
top_ps = st.one_of(st.just(1.0), st.floats(2.0**-20, 1.0, width=32))


@needs_kernels
@PROPERTY
@given(seeds, vocabs, spreads, temperatures, top_ks, top_ps, st.sampled_from([0.0, 0.3, 0.99]))
def test_the_kernel_draws_what_torch_draws(seed, vocab, spread, temperature, top_k, top_p, share_impossible):
    logits = different_logits(vocab, spread, seed)
    impossible = torch.rand(vocab, generator=torch.Generator().manual_seed(seed)) < share_impossible
    impossible[seed % vocab] = False
    logits[impossible] = NEVER

    assert_draws_as_in_torch(logits, temperature, top_k, top_p)


@needs_kernels
@PROPERTY
@given(seeds, vocabs, st.sampled_from([0.5, 2.0, 8.0]), temperatures, top_ks)
def test_ties_with_the_last_of_the_top_k_stay_as_in_torch(seed, vocab, spread, temperature, top_k):
    """Logits are whole numbers; zeros of both signs are alike."""
    logits = (torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread).round()

    assert_draws_as_in_torch(logits, temperature, top_k, 1.0)


@needs_kernels
@PROPERTY
@given(seeds, st.floats(0.25, 3.0, width=32))
def test_logits_that_the_temperature_makes_equal_are_ties_as_in_torch(seed, temperature):
    """They follow each other in float32, and are many more than what they become."""
    steps = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
    logits = (7.5 + steps.double() * 2.0**-21).float()

    for top_k in (1, 2, 5, 20, 21, 22, 23, 50):
        kept = kept_in_torch(logits, temperature, top_k, 1.0)
        tokens = drawn(ops.draw_tokens, logits, temperature=temperature, top_k=top_k)

        assert set(tokens) == set((kept > NEVER).nonzero().flatten().tolist())


@needs_kernels
@pytest.mark.parametrize("top_k", range(1, 12))
def test_the_top_k_may_stand_side_by_side_or_far_apart(top_k):
    side_by_side = torch.zeros(512) + torch.linspace(0.9, 0.0, 512)
    side_by_side[100:108] += 2.0
    far_apart = torch.zeros(512) + torch.linspace(0.9, 0.0, 512)
    far_apart[20::64] += 2.0

    for logits in (side_by_side, far_apart):
        tokens = drawn(ops.draw_tokens, logits, top_k=top_k)

        assert set(tokens) == set(logits.topk(top_k).indices.tolist())


@needs_kernels
@pytest.mark.parametrize("values", [(0, 0.95), (50, 1.0), (50, 0.95), (5000, 1.0), (0, 0.5), (0, 1.0)], ids=str)
@pytest.mark.parametrize("spread", [0.1, 3.0], ids=["flat", "peaked"])
def test_a_large_vocabulary_is_drawn_from_as_in_torch(values, spread):
    assert_draws_as_in_torch(different_logits(128_256, spread, 1), 0.8, *values, rounding=2e-5)


@needs_kernels
@pytest.mark.parametrize("top_p", [0.001, 0.25, 0.5, 0.99])
def test_of_equally_likely_tokens_top_p_keeps_the_first(top_p):
    logits = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0]).repeat(50)
    ones = (logits == 1).nonzero().flatten()
    total = logits.double().exp().sum() / np.e
    fewest = int(torch.ceil(total * top_p))

    tokens = drawn(ops.draw_tokens, logits, (np.arange(5000) + 0.5) / 5000, top_p=top_p)

    # Of 200 tokens of weight 1, before 100 of weight 1/e.
    assert set(tokens) >= set(ones[:fewest].tolist())
    if fewest <= 200:
        assert set(tokens) == set(ones[:fewest].tolist())


@either_way
@pytest.mark.parametrize("values", [{}, {"top_k": 2}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.5}], ids=str)
@pytest.mark.parametrize(
    ("special", "expected"),
    [
        pytest.param({70: "nan"}, 70, id="NaN"),
        pytest.param({70: "-nan"}, 70, id="NaN with a sign"),
        pytest.param({90: "nan", 70: "-nan"}, 70, id="NaN of both signs"),
        pytest.param({80: "inf", 90: "inf"}, 80, id="infinity"),
        pytest.param({80: "inf", 90: "nan"}, 90, id="infinity and NaN"),
        pytest.param({80: "3e38", 90: "3.1e38"}, 90, id="infinite after the temperature"),
        pytest.param(dict.fromkeys(range(100), "-inf"), 0, id="none possible"),
    ],
)
def test_without_probabilities_the_likeliest_token_is_taken(draw, values, special, expected):
    logits = different_logits(100, 3.0, 0)
    for token, value in special.items():
        logits[token] = float(value)

    assert set(drawn(draw, logits, temperature=0.5, **values)) == {expected}


@either_way
def test_a_row_without_probabilities_leaves_the_others_alone(draw):
    logits = torch.stack([different_logits(300, 3.0, seed) for seed in range(3)])
    choice, uniform = choice_of([0, 1, 2], top_k=20, top_p=0.9), np.array([0.1, 0.5, 0.8])
    before = draw(logits.clone(), choice, uniform).tolist()
    logits[1, 7] = float("nan")

    assert draw(logits, choice, uniform).tolist() == [before[0], 7, before[2]]


@either_way
@pytest.mark.parametrize("values", [{}, {"top_k": 4}, {"top_p": 0.999}], ids=str)
def test_no_random_number_takes_an_impossible_token(draw, values):
    logits = torch.full((200,), NEVER)
    logits[[3, 70, 150]] = torch.tensor([0.0, 1.0, 0.0])

    assert drawn(draw, logits, [0.0, BELOW_1], **values) == [3, 150]


@needs_kernels
@PROPERTY
@given(seeds, st.lists(st.tuples(temperatures, top_ks, top_ps, st.floats(0, BELOW_1)), min_size=1, max_size=9))
def test_each_row_draws_the_same_alone_among_others_and_on_any_number_of_threads(seed, draws):
    vocab = 3000
    logits = torch.stack([different_logits(vocab, 3.0, seed + row) for row, _ in enumerate(draws)])
    rows = list(range(len(draws)))[::-1]
    together, uniform = choice_of(rows), np.array([draws[row][3] for row in rows])
    for i, row in enumerate(rows):
        together.temperature[i], together.top_k[i], together.top_p[i], _ = draws[row]

    tokens = ops.draw_tokens(logits, together, uniform).tolist()

    # Among rows that are further apart, and one by one.
    apart = torch.full((len(draws), vocab + 5), float("nan"))
    apart[:, :vocab] = logits
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert ops.draw_tokens(apart[:, :vocab], together, uniform).tolist() == tokens
    finally:
        torch.set_num_threads(threads)
    for row, token in zip(rows, tokens, strict=True):
        temperature, top_k, top_p, number = draws[row]
        assert drawn(ops.draw_tokens, logits[row], [number], temperature=temperature, top_k=top_k, top_p=top_p) == [
            token
        ]


@needs_kernels
def test_the_kernel_only_reads_the_logits():
    logits = different_logits(500, 3.0, 0).unsqueeze(0)
    before = logits.clone()

    for values in ({}, {"top_k": 5}, {"top_p": 0.5}):
        ops.draw_tokens(logits, choice_of([0], temperature=0.5, **values), np.array([0.5]))

    assert torch.equal(logits, before)


@needs_kernels
def test_logits_that_the_kernel_cannot_read_are_drawn_from_in_torch():
    logits = different_logits(500, 3.0, 0).unsqueeze(0)
    choice, uniform = choice_of([0], top_k=20), np.array([0.5])
    expected = ops.draw_tokens(logits, choice, uniform)

    assert torch.equal(ops.draw_tokens(logits.double(), choice, uniform), expected)
    assert torch.equal(ops.draw_tokens(logits.repeat(2, 1).T.contiguous().T[:1], choice, uniform), expected)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"logits": torch.zeros(2, 8).double()},
            "the kernels take float32, bfloat16 or float16, .* given torch.float64",
        ),
        (
            {
                name: torch.zeros(2, 8 if name == "logits" else 1).bfloat16()
                for name in ("logits", "temperature", "top_p")
            },
            r"draw_tokens takes logits .* as float32, .* given torch.bfloat16",
        ),
        (
            {"logits": torch.zeros(8, 2).T},
            r"draw_tokens takes logits .* given torch.float32 \[2, 8\] with strides \(1, 2\)",
        ),
        ({"top_k": torch.zeros(2)}, "the kernels take indices as int64 in host memory, given torch.float32"),
        ({"uniform": torch.zeros(2)}, r"draw_tokens takes .* random numbers as float64, given .* and torch.float32"),
    ],
    ids=["dtype", "bfloat16", "strides", "top_k", "uniform"],
)
def test_what_the_kernel_would_misread_is_refused(change, message):
    ones = torch.ones(2)
    fitting = {
        "logits": torch.zeros(2, 8),
        "rows": torch.tensor([0, 1]),
        "temperature": ones,
        "top_k": torch.tensor([0, 0]),
        "top_p": ones,
        "uniform": ones.double() / 2,
    }

    with pytest.raises(TypeError, match=message):
        _custom_ops.draw_tokens(**(fitting | change))
