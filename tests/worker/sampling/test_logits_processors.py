"""What each logits processor does to logits, and that its state follows the requests."""

from __future__ import annotations

import random

import pytest
import torch
from support.sampling import CPU, Rows
from transformers import MinPLogitsWarper, NoBadWordsLogitsProcessor

from vllm_ext.contracts.logits_processor import BatchUpdate, LogitsProcessor
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.worker.sampling.logits_processors import IN_TREE, MinPLogitsProcessor
from vllm_ext.worker.sampling.sampler import Sampler

NEVER = float("-inf")


def greedy(**values) -> SamplingParams:
    return SamplingParams(temperature=0, **values)


def logits_of(rows: int, vocab: int = 12) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(rows))


def impossible(logits: torch.Tensor) -> list[list[int]]:
    """Token ids that cannot be taken, by row."""
    return [(row == NEVER).nonzero().flatten().tolist() for row in logits]


def test_they_keep_the_contract():
    processors = [processor_cls(None, CPU, False) for processor_cls in IN_TREE]

    assert all(isinstance(processor, LogitsProcessor) for processor in processors)
    assert [type(p) for p in processors if p.is_argmax_invariant()] == [MinPLogitsProcessor]


def test_a_bias_is_added():
    logits, rows = logits_of(2), Rows()
    rows.add(0, greedy(logit_bias={3: 2.5, 7: -100.0}))
    rows.add(1, greedy())

    expected = logits.clone()
    expected[0, 3] += 2.5
    expected[0, 7] -= 100.0
    torch.testing.assert_close(rows.processed(logits, [0, 1]), expected)


def test_only_allowed_tokens_are_left_with_their_logits():
    logits, rows = logits_of(3), Rows()
    rows.add(0, greedy())
    rows.add(1, greedy(allowed_token_ids=[2, 9]))
    rows.add(2, greedy(allowed_token_ids=[0]))

    processed = rows.processed(logits, [0, 1, 2])

    assert torch.equal(processed[0], logits[0])
    assert torch.equal(processed[1:][processed[1:] > NEVER], torch.stack([logits[1, 2], logits[1, 9], logits[2, 0]]))


def test_tokens_that_stop_are_impossible_until_there_are_min_tokens():
    logits, rows = logits_of(1), Rows()
    rows.add(0, greedy(min_tokens=2, _all_stop_token_ids=frozenset({1, 4})))

    seen = []
    for _ in range(4):
        seen.append(impossible(rows.processed(logits, [0]))[0])
        rows.append(0, 5)

    assert seen == [[1, 4], [1, 4], [], []]


def test_output_from_before_a_preemption_counts_for_min_tokens():
    rows = Rows()
    rows.add(0, greedy(min_tokens=3, _all_stop_token_ids=frozenset({1})), output=[5, 5])

    assert impossible(rows.processed(logits_of(1), [0])) == [[1]]
    rows.append(0, 5)
    assert impossible(rows.processed(logits_of(1), [0])) == [[]]


@pytest.mark.parametrize("output", [[], [2], [2, 3], [2, 3, 5], [3], [7, 2], [2, 2, 3]], ids=str)
def test_bad_words_are_those_of_transformers(output):
    words = [[4], [2, 3], [2, 3, 6]]
    logits, rows = logits_of(1), Rows()
    rows.add(0, greedy(bad_words=["x"], _bad_words_token_ids=tuple(map(tuple, words))), prompt=[9], output=output)

    theirs = NoBadWordsLogitsProcessor(words, eos_token_id=-1)(torch.tensor([[9, *output]]), logits.clone())
    torch.testing.assert_close(rows.processed(logits, [0]), theirs)


def test_a_bad_word_does_not_begin_in_the_prompt():
    rows = Rows()
    rows.add(0, greedy(bad_words=["x"], _bad_words_token_ids=((2, 3),)), prompt=[2])

    assert impossible(rows.processed(logits_of(1), [0])) == [[]]


@pytest.mark.parametrize("min_p", [0.01, 0.3, 1.0])
def test_min_p_is_that_of_transformers(min_p):
    logits = logits_of(3, 200)
    processor = MinPLogitsProcessor(None, CPU)
    added = [(row, SamplingParams(min_p=share), [], []) for row, share in enumerate((0.0, min_p, 0.0))]
    processor.update_state(BatchUpdate(3, [], added, []))

    processed = processor.apply(logits.clone())

    torch.testing.assert_close(processed[1:2], MinPLogitsWarper(min_p)(None, logits[1:2]))
    assert torch.equal(processed[::2], logits[::2])


def test_processors_follow_requests_through_changing_batches():
    """Each request's row is processed as when it is alone, whoever comes, goes, pauses and changes places."""
    rng = random.Random(0)
    kinds = [
        {},
        {"logit_bias": {1: 5.0, 2: -3.0}},
        {"allowed_token_ids": [3, 4, 5]},
        {"min_tokens": 4, "_all_stop_token_ids": frozenset({0, 6})},
        {"bad_words": ["x"], "_bad_words_token_ids": ((7,), (5, 8))},
    ]
    rows, alone = Rows(), {}
    outputs: dict[int, list[int]] = {}
    params: dict[int, SamplingParams] = {}
    differing = 0
    for _ in range(300):
        slot = rng.randrange(8)
        if slot in params and rng.random() < 0.3:
            rows.batch.remove(slot)
            del params[slot]
        elif slot not in params:
            params[slot], outputs[slot] = greedy(**rng.choice(kinds)), rng.choices(range(12), k=rng.randrange(3))
            rows.add(slot, params[slot], output=outputs[slot])
        if not params:
            continue
        step = rng.sample(sorted(params), rng.randint(1, len(params)))
        logits = logits_of(len(step))
        processed = rows.processed(logits, step)
        for row, member in enumerate(step):
            alone = Rows(1)
            alone.add(0, params[member], output=outputs[member])
            expected = alone.processed(logits[row : row + 1], [0])[0]
            assert torch.equal(processed[row], expected)
            differing += not torch.equal(expected, logits[row])
            token = rng.choice([5, 8, 1])
            outputs[member] = [*outputs[member], token]
            rows.append(member, token)
    assert differing > 100


def test_a_batch_without_extras_takes_the_likeliest_tokens_and_makes_no_metadata():
    rows = Rows()
    rows.add(0, greedy(stop=["x"], stop_token_ids=[3], max_tokens=5, ignore_eos=True))

    assert rows.batch.metadata([0]) is None
    assert rows.sample(Sampler(0), torch.tensor([[0.0, 2.0]]), [0]).token_ids.tolist() == [1]
