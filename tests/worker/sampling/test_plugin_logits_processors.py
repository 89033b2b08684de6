"""What processors of plugins are told of the rows, and when they are applied."""

from __future__ import annotations

import pytest
import torch
from support.sampling import CPU, Rows

from vllm_ext.contracts.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.dispatch.logits_processors import NamedLogitsProcessor
from vllm_ext.errors import EngineError
from vllm_ext.worker.sampling.plugin_logits_processors import PluginLogitsProcessor
from vllm_ext.worker.sampling.sampler import Sampler

GREEDY = SamplingParams(temperature=0)
DRAWING = SamplingParams(temperature=2.0, seed=1)


class Recorder(LogitsProcessor):
    """Knows who has which row, and keeps the logits that it was given."""

    invariant = False

    def __init__(self, vllm_config=None, device=CPU, is_pin_memory=False) -> None:
        self.rows: dict[int, tuple] = {}
        self.seen: list[torch.Tensor] = []
        self.num_updates = 0

    def is_argmax_invariant(self) -> bool:
        return self.invariant

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        self.num_updates += 1
        process_dict_updates(self.rows, batch_update, lambda *request: request)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        self.seen.append(logits.clone())
        return logits


class InvariantRecorder(Recorder):
    invariant = True


def rows_with(processor: LogitsProcessor, *requests: SamplingParams) -> Rows:
    rows = Rows(plugins=[processor])
    for slot, params in enumerate(requests):
        rows.add(slot, params, prompt=[slot, 5], output=[7] * slot)
    return rows


def test_it_is_told_of_every_request_with_its_parameters_prompt_and_output():
    recorder = Recorder()
    rows = rows_with(recorder, GREEDY, DRAWING)

    rows.sample(Sampler(0), torch.zeros(2, 4), [0, 1])
    rows.append(1, 9)

    assert recorder.rows == {0: (GREEDY, [0, 5], []), 1: (DRAWING, [1, 5], [7, 9])}


def test_an_invariant_one_is_neither_told_nor_applied_while_all_requests_are_greedy():
    recorder = InvariantRecorder()
    rows = rows_with(recorder, GREEDY, GREEDY)

    assert rows.batch.metadata([0, 1]) is None
    assert (recorder.num_updates, recorder.seen) == (0, [])


def test_an_invariant_one_is_applied_after_the_temperature_and_told_of_all_rows():
    recorder = InvariantRecorder()
    rows = rows_with(recorder, GREEDY, DRAWING)

    rows.sample(Sampler(0), torch.tensor([[1.0, 8.0], [1.0, 8.0]]), [0, 1])

    (seen,) = recorder.seen
    assert seen[1].tolist() == [0.5, 4.0]
    assert recorder.rows == {0: (GREEDY, [0, 5], []), 1: (DRAWING, [1, 5], [7])}


def test_even_a_false_claim_of_invariance_leaves_greedy_requests_alone():
    class Liar(InvariantRecorder):
        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return -logits

    rows = rows_with(Liar(), GREEDY, DRAWING)

    assert rows.sample(Sampler(0), torch.tensor([[1.0, 8.0], [1.0, 80.0]]), [0, 1]).token_ids.tolist() == [1, 0]


def test_it_comes_after_the_workers_own_and_before_penalties():
    recorder = Recorder()
    params = SamplingParams(temperature=0, logit_bias={0: 3.0}, presence_penalty=2.0)
    rows = Rows(plugins=[recorder])
    rows.add(0, params, output=[1])

    processed = rows.processed(torch.zeros(1, 3), [0])

    assert recorder.seen[0].tolist() == [[3.0, 0.0, 0.0]]
    assert processed.tolist() == [[3.0, -2.0, 0.0]]


def test_a_request_that_sits_out_a_step_comes_back_with_its_output():
    recorder = Recorder()
    rows = rows_with(recorder, GREEDY, DRAWING)
    sampler = Sampler(0)

    rows.sample(sampler, torch.zeros(2, 4), [0, 1])
    rows.append(1, 9)
    rows.sample(sampler, torch.zeros(1, 4), [0])
    assert recorder.rows == {0: (GREEDY, [0, 5], [])}
    rows.sample(sampler, torch.zeros(2, 4), [1, 0])

    assert recorder.rows == {0: (DRAWING, [1, 5], [7, 9]), 1: (GREEDY, [0, 5], [])}


def test_logits_in_another_dtype_are_brought_back():
    class Half(Recorder):
        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return logits.half()

    guarded = PluginLogitsProcessor(None, CPU, False, NamedLogitsProcessor("plugin 'half'", Half))

    assert guarded.apply(torch.zeros(1, 2)).dtype == torch.float32


@pytest.mark.parametrize("returned", [None, torch.zeros(1), torch.zeros(1, 2, dtype=torch.int64)], ids=str)
def test_what_is_no_logits_is_an_error_with_the_name_of_the_plugin(returned):
    class Odd(Recorder):
        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return returned

    guarded = PluginLogitsProcessor(None, CPU, False, NamedLogitsProcessor("plugin 'odd'", Odd))

    with pytest.raises(EngineError, match=r"plugin 'odd' failed in apply\(\): TypeError: it has to return the logits"):
        guarded.apply(torch.zeros(1, 2))


def test_one_that_looks_for_one_more_of_nothing_is_named_like_any_other():
    class Empty(Recorder):
        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return next(iter([]))

    guarded = PluginLogitsProcessor(None, CPU, False, NamedLogitsProcessor("plugin 'empty'", Empty))

    with pytest.raises(EngineError, match=r"plugin 'empty' failed in apply\(\): StopIteration"):
        guarded.apply(torch.zeros(1, 2))
