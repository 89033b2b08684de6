"""Which token is chosen, and by which random numbers."""

from __future__ import annotations

import torch
from support.sampling import rows_of

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.worker.sampling.sampler import Sampler

GREEDY = SamplingParams(temperature=0.0)
RANDOM = SamplingParams(temperature=1.0)


def seeded(seed: int, temperature: float = 1.0) -> SamplingParams:
    return SamplingParams(temperature=temperature, seed=seed)


def sample(sampler: Sampler, logits: torch.Tensor, params: list[SamplingParams], count: int = 0) -> list[int]:
    return rows_of(params, count).sample(sampler, logits, range(len(params))).token_ids.tolist()


def test_temperature_0_takes_the_first_of_the_most_likely_tokens():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 4.0, 5.0]])

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert sample(Sampler(0), logits.to(dtype), [GREEDY, GREEDY]) == [1, 0]


def test_logits_of_16_bits_leave_nothing_to_batches_of_other_sizes():
    sampler, generator = Sampler(0), torch.Generator().manual_seed(0)

    for rows, vocabulary in [(3, 40), (1, 7), (5, 40), (2, 90)]:
        logits = torch.randn(rows, vocabulary, generator=generator).bfloat16()
        params = [seeded(seed) for seed in range(rows)]

        assert sample(sampler, logits, params) == sample(Sampler(0), logits.float(), params)


def test_tokens_come_as_often_as_their_probabilities_say():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    rows = 20_000

    tokens = sample(Sampler(1), probabilities.log().repeat(rows, 1), [RANDOM] * rows)

    shares = torch.bincount(torch.tensor(tokens), minlength=5) / rows
    # Four standard deviations of a share are below 0.015.
    torch.testing.assert_close(shares, probabilities, atol=0.015, rtol=0)
    assert shares[1] == 0


def test_seeded_tokens_come_as_often_as_their_probabilities_say():
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    logits = probabilities.log().unsqueeze(0)
    sampler = Sampler(0)

    tokens = [sample(sampler, logits, [seeded(7)], count)[0] for count in range(2000)]

    shares = torch.bincount(torch.tensor(tokens), minlength=3) / len(tokens)
    torch.testing.assert_close(shares, probabilities, atol=0.035, rtol=0)


def test_the_temperature_sharpens_and_flattens():
    logits = torch.tensor([[2.0, 0.0]]).repeat(4000, 1)
    cold, hot = (sample(Sampler(0), logits, [SamplingParams(temperature=t)] * 4000).count(0) / 4000 for t in (0.5, 2.0))

    # Logits 4 and 0, 1 and 0.
    assert abs(cold - 0.982) < 0.02
    assert abs(hot - 0.731) < 0.03


def test_a_tiny_temperature_is_greedy():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))

    assert sample(Sampler(0), logits, [seeded(3, 1e-4)]) == [int(logits.argmax())]


def test_a_seeded_request_draws_the_same_alone_and_among_others():
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    busy = Sampler(5)
    together = sample(busy, logits, [RANDOM, seeded(11), GREEDY, seeded(12)], count=3)

    assert sample(Sampler(0), logits[1:2], [seeded(11)], count=3) == [together[1]]
    assert sample(Sampler(0), logits[3:], [seeded(12)], count=3) == [together[3]]


def test_seeds_of_either_sign_and_any_size_are_taken_apart():
    logits = torch.zeros(1, 10**6)
    seeds = [0, 1, -2, -(2**63), 2**63 + 1, 2**64 - 3]

    assert len({sample(Sampler(0), logits, [seeded(seed)])[0] for seed in seeds}) == len(seeds)


def test_successive_tokens_of_a_seed_differ():
    logits = torch.zeros(1, 10**6)

    assert len({sample(Sampler(0), logits, [seeded(0)], count)[0] for count in range(20)}) == 20


def test_unseeded_requests_follow_the_seed_of_the_engine():
    logits = torch.zeros(3, 10**6)

    first = sample(Sampler(4), logits, [RANDOM] * 3)

    assert sample(Sampler(4), logits, [RANDOM] * 3) == first
    assert sample(Sampler(5), logits, [RANDOM] * 3) != first
    assert len(set(first)) == 3
