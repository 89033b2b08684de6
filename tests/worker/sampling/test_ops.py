"""Top-k, top-p, min-p and the penalties give what transformers' processors give; draws follow the probabilities."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.sampling import Rows
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vllm_ext import _custom_ops
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.worker.sampling import ops
from vllm_ext.worker.sampling.sampler import Sampler

VOCABS = [7, 300, 5000]
PROPERTY = settings(max_examples=60)
seeds = st.integers(0, 2**32)


def random_logits(rows: int, vocab: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def assert_same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@PROPERTY
@given(seeds, st.sampled_from(VOCABS), st.lists(st.integers(1, 6000), min_size=1, max_size=4))
def test_top_k_is_that_of_transformers(seed, vocab, top_k):
    logits = random_logits(len(top_k), vocab, seed)
    expected = torch.cat([TopKLogitsWarper(k)(None, row[None]) for k, row in zip(top_k, logits, strict=True)])

    assert_same_logits(ops.apply_top_k(logits.clone(), torch.tensor(top_k).unsqueeze(1)), expected)


def test_a_tie_with_the_last_of_the_top_k_stays_as_in_transformers():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])

    ours = ops.apply_top_k(logits.clone(), torch.tensor([[2]]))

    assert_same_logits(ours, TopKLogitsWarper(2)(None, logits))
    assert ours.isfinite().sum() == 4


@PROPERTY
@given(seeds, st.sampled_from(VOCABS), st.lists(st.floats(0.001, 1.0), min_size=1, max_size=4), st.floats(0.1, 6.0))
def test_top_p_is_that_of_transformers(seed, vocab, top_p, spread):
    logits = random_logits(len(top_p), vocab, seed, spread)
    expected = torch.cat([TopPLogitsWarper(p)(None, row[None]) for p, row in zip(top_p, logits, strict=True)])
    # Where a sum of probabilities lies within a rounding of p, either is right.
    sums = logits.softmax(-1).sort(dim=-1, descending=True).values.cumsum(-1, dtype=torch.float64)
    assume(((sums - torch.tensor(top_p).unsqueeze(1)).abs() > 2e-6).all() or vocab == VOCABS[-1])
    limits = torch.tensor(top_p).unsqueeze(1)

    ours = ops.apply_top_p(logits.clone(), limits)

    # In order: of tokens that are equally likely, either may be the last one kept.
    different = (ours.sort(dim=-1).values != expected.sort(dim=-1).values).sum(dim=-1)
    near = ((sums - limits).abs() <= 2e-6).sum(dim=-1)
    assert (different <= near).all()


@pytest.mark.parametrize("spread", [0.05, 5.0], ids=["flat", "peaked"])
def test_top_p_looks_beyond_its_first_candidates_where_it_has_to(spread):
    logits = random_logits(2, 4000, 1, spread)

    kept = ops.apply_top_p(logits.clone(), torch.full((2, 1), 0.9)).isfinite().sum(dim=-1)

    assert kept.tolist() == TopPLogitsWarper(0.9)(None, logits).isfinite().sum(dim=-1).tolist()
    assert (kept > 256).all() == (spread < 1)


def test_top_p_always_keeps_the_likeliest_token():
    kept = ops.apply_top_p(random_logits(3, 50, 0), torch.full((3, 1), 1e-6)).isfinite().sum(dim=-1)

    assert kept.tolist() == [1, 1, 1]


TOKENS = st.lists(st.integers(0, 29), max_size=12)


@PROPERTY
@given(seeds, st.lists(st.tuples(TOKENS.filter(bool), TOKENS, st.floats(0.2, 3.0)), min_size=1, max_size=4))
def test_the_repetition_penalty_is_that_of_transformers(seed, requests):
    logits = random_logits(len(requests), 30, seed)
    rows = Rows()
    expected = []
    for slot, (prompt, output, penalty) in enumerate(requests):
        rows.add(slot, SamplingParams(temperature=0, repetition_penalty=penalty), prompt, output)
        processor = RepetitionPenaltyLogitsProcessor(penalty)
        expected.append(processor(torch.tensor([prompt + output]), logits[slot : slot + 1].clone()))

    assert_same_logits(rows.processed(logits, range(len(requests))), torch.cat(expected))


@PROPERTY
@given(
    seeds,
    st.lists(st.tuples(TOKENS.filter(bool), TOKENS, st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=4),
)
def test_presence_and_frequency_penalties_count_the_output_alone(seed, requests):
    logits = random_logits(len(requests), 30, seed)
    rows = Rows()
    expected = logits.clone()
    for slot, (prompt, output, presence, frequency) in enumerate(requests):
        params = SamplingParams(temperature=0, presence_penalty=presence, frequency_penalty=frequency)
        rows.add(slot, params, prompt, output)
        for token, count in Counter(output).items():
            expected[slot, token] -= presence + count * frequency

    assert_same_logits(rows.processed(logits, range(len(requests))), expected)


def test_all_three_penalties_together_come_in_the_order_of_vllm():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    rows = Rows()
    params = SamplingParams(temperature=0, repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=1.0)
    rows.add(0, params, prompt=[0], output=[1, 1, 2])

    # Repetition scales first: 2 / 2; -2 * 2 and 1 / 2 lose 0.25 for each time and 1 once.
    assert_same_logits(rows.processed(logits, [0]), torch.tensor([[1.0, -5.5, -0.75, 0.5]]))


def test_rows_without_penalties_between_others_are_left_alone():
    logits = random_logits(3, 30, 0)
    rows = Rows()
    rows.add(0, SamplingParams(temperature=0), [1], [2, 3])
    rows.add(1, SamplingParams(temperature=0, presence_penalty=1.5), [1], [2, 2])
    rows.add(2, SamplingParams(temperature=0), [1], [4])

    expected = logits.clone()
    expected[1, 2] -= 1.5
    assert_same_logits(rows.processed(logits, [0, 1, 2]), expected)


def test_penalties_follow_each_new_token():
    logits = random_logits(1, 10, 0)
    rows = Rows()
    rows.add(0, SamplingParams(temperature=0, frequency_penalty=0.5), [1])
    expected = logits.clone()
    for token in (4, 4, 7):
        assert_same_logits(rows.processed(logits, [0]), expected)
        rows.append(0, token)
        expected[0, token] -= 0.5


def support_of(logits: torch.Tensor, params: SamplingParams, draws: int = 400) -> set[int]:
    """Tokens that are drawn."""
    rows = Rows(draws, 4)
    for slot in range(draws):
        rows.add(slot, params)
    return set(rows.sample(Sampler(0), logits.expand(draws, -1), range(draws)).token_ids.tolist())


@PROPERTY
@given(
    seeds,
    st.floats(0.5, 2.0),
    st.one_of(st.just(0.0), st.floats(0.01, 0.9)),
    st.integers(0, 12),
    st.floats(0.2, 1.0),
)
def test_what_is_drawn_survives_transformers_warpers_in_the_order_of_vllm(seed, temperature, min_p, top_k, top_p):
    logits = random_logits(1, 20, seed)
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    scores = MinPLogitsWarper(min_p)(None, scores) if min_p else scores
    scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    params = SamplingParams(temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p)

    drawn = support_of(logits, params)

    probs = scores.softmax(-1)[0]
    assert drawn <= set(probs.nonzero().flatten().tolist())
    # With a probability of 0.05, 400 draws miss a token once in 10**9 times.
    assert drawn >= set((probs > 0.05).nonzero().flatten().tolist())


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """Pearson's statistic, over cells that expect at least 5."""
    expected = probs.double() * counts.sum()
    cells = expected >= 5
    rest_counts, rest_expected = counts[~cells].sum(), expected[~cells].sum()
    statistic = ((counts[cells] - expected[cells]) ** 2 / expected[cells]).sum()
    return float(statistic + ((rest_counts - rest_expected) ** 2 / rest_expected if rest_expected >= 5 else 0))


@pytest.mark.parametrize("kernels", [True, False], ids=["with kernels", "without"])
@pytest.mark.parametrize("seeded", [False, True], ids=["unseeded", "seeded"])
@pytest.mark.parametrize(
    "values", [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05, "temperature": 0.7}], ids=lambda v: "+".join(v)
)
def test_drawn_tokens_pass_a_chi_square_test(values, seeded, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(_custom_ops, "why_missing", lambda: "not wanted")
    vocab, draws = 60, 20_000
    logits = random_logits(1, vocab, 3, spread=1.5)
    scores = logits / values.get("temperature", 1.0)
    for name, warper in (("min_p", MinPLogitsWarper), ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper)):
        if name in values:
            scores = warper(values[name])(None, scores)
    rows = Rows(draws, 2)
    for slot in range(draws):
        rows.add(slot, SamplingParams(seed=slot if seeded else None, **values))

    tokens = rows.sample(Sampler(11), logits.expand(draws, -1), range(draws)).token_ids

    counts = torch.bincount(tokens, minlength=vocab)
    probs = scores.softmax(-1)[0]
    assert counts[probs == 0].sum() == 0
    freedom = int((probs * draws >= 5).sum()) - 1
    # Mean freedom, variance 2 * freedom: five standard deviations above it; the seeds are fixed.
    assert chi_square(counts, probs) < freedom + 5 * (2 * freedom) ** 0.5


def test_successive_numbers_of_a_seed_pass_a_chi_square_test():
    numbers = ops.seeded_uniform(np.full(20_000, 5, dtype=np.uint64), np.arange(20_000))

    counts = np.histogram2d(numbers[:-1], numbers[1:], bins=10, range=[(0, 1), (0, 1)])[0]

    expected = (len(numbers) - 1) / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * (2 * 99) ** 0.5
    assert 0 <= numbers.min() < numbers.max() < 1


def test_seeded_numbers_are_those_of_splitmix64():
    # First output of the published generator for the seed 1234567: 6457827717110365317.
    (number,) = ops.seeded_uniform(np.array([1234567], dtype=np.uint64), np.array([0]))

    assert number == (6457827717110365317 >> 11) * 2.0**-53


def test_logits_that_are_no_numbers_give_a_token_that_exists():
    rows = Rows()
    rows.add(0, SamplingParams())

    (token,) = rows.sample(Sampler(0), torch.full((1, 9), float("nan")), [0]).token_ids.tolist()

    assert 0 <= token < 9
