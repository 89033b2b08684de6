"""The base for processors of one request at a time, and what lets a dictionary by row follow the requests."""

from __future__ import annotations

import pytest
import torch

from vllm_ext import AdapterLogitsProcessor, BatchUpdate, LogitsProcessor, MoveDirectionality, SamplingParams
from vllm_ext.contracts.logits_processor import process_dict_updates

PARAMS = SamplingParams()


class Adapter(AdapterLogitsProcessor):
    """Gives each request the processor that its ``extra_args`` have."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams):
        return (params.extra_args or {}).get("processor")


def with_processor(processor) -> SamplingParams:
    return SamplingParams(extra_args={"processor": processor})


def adapter(*requests: tuple[SamplingParams, list[int], list[int]]) -> Adapter:
    made = Adapter(None, torch.device("cpu"), False)
    added = [(row, *request) for row, request in enumerate(requests)]
    made.update_state(BatchUpdate(len(requests), [], added, []))
    return made


def test_a_processor_of_two_arguments_is_given_the_output_as_it_grows():
    output: list[int] = []
    made = adapter((with_processor(lambda out, logits: logits + len(out)), [1, 2], output))

    assert made.apply(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]
    output += [7, 7]
    assert made.apply(torch.zeros(1, 3)).tolist() == [[2, 2, 2]]


def test_a_processor_of_three_arguments_is_given_the_prompt_first():
    made = adapter((with_processor(lambda prompt, out, logits: logits + len(prompt)), [1, 2, 3], [9]))

    assert made.apply(torch.zeros(1, 2)).tolist() == [[3, 3]]


def test_a_processor_may_change_the_logits_in_place():
    made = adapter((PARAMS, [], []), (with_processor(lambda out, logits: logits.mul_(2)), [], []))

    assert made.apply(torch.ones(2, 2)).tolist() == [[1, 1], [2, 2]]


def test_a_processor_goes_with_its_request_and_ends_with_it():
    double, negate = (with_processor(lambda out, logits, f=f: logits * f) for f in (2, -1))
    made = adapter((PARAMS, [], []), (double, [], []), (negate, [], []))

    made.update_state(BatchUpdate(3, [], [], [(0, 2, MoveDirectionality.SWAP)]))
    assert made.apply(torch.ones(3, 1)).tolist() == [[-1], [2], [1]]
    made.update_state(BatchUpdate(1, [0], [], [(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert made.apply(torch.ones(1, 1)).tolist() == [[2]]
    made.update_state(None)
    assert made.apply(torch.ones(1, 1)).tolist() == [[2]]
    made.update_state(BatchUpdate(1, [0], [(0, PARAMS, [], [])], []))
    assert made.apply(torch.ones(1, 1)).tolist() == [[1]]


def test_logits_of_another_shape_are_refused():
    made = adapter((with_processor(lambda out, logits: logits[:1]), [], []))

    with pytest.raises(ValueError, match=r"returned logits of shape \[1\] for \[4\]"):
        made.apply(torch.zeros(1, 4))


def test_the_default_accepts_all_parameters():
    assert LogitsProcessor.validate_params(SamplingParams(extra_args={"x": 1})) is None


def test_without_an_update_nothing_changes():
    state = {0: "a"}

    assert process_dict_updates(state, None, lambda *request: "b") is False
    assert state == {0: "a"}
