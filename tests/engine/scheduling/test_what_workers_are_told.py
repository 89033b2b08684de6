"""What a worker that is written for vLLM's scheduler is told of requests that were preempted or left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from support.core_run import engine
from support.fake_engine import continuation

from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.engine.executors.worker_messages import decode_call, encode_step
from vllm_ext.engine.scheduling.request import RequestStatus


class VendorsRequests:
    """Requests as vLLM's documentation of :class:`SchedulerOutput` has a worker keep them: nothing is dropped until it
    is finished, blocks are appended or replaced, and tokens come from what was sampled.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.num_prompt_tokens: dict[str, int] = {}
        self.block_ids: dict[str, tuple[list[int], ...]] = {}

    def update(self, output: SchedulerOutput) -> None:
        for req_id in output.finished_req_ids:
            del self.tokens[req_id], self.block_ids[req_id], self.num_prompt_tokens[req_id]
        for new in output.scheduled_new_reqs:
            assert new.req_id not in self.tokens
            self.tokens[new.req_id], self.block_ids[new.req_id] = list(new.prompt_token_ids), new.block_ids
            self.num_prompt_tokens[new.req_id] = new.prompt_len
        cached = output.scheduled_cached_reqs
        for i, req_id in enumerate(cached.req_ids):
            new_block_ids = cached.new_block_ids[i]
            if req_id in cached.resumed_req_ids:
                self.block_ids[req_id] = new_block_ids
            elif new_block_ids is not None:
                for block_ids, new_ids in zip(self.block_ids[req_id], new_block_ids, strict=True):
                    block_ids.extend(new_ids)
            known = self.tokens[req_id]
            assert len(known) == self.num_prompt_tokens[req_id] + cached.num_output_tokens[i]
            assert cached.all_token_ids.get(req_id, known) == known


@pytest.fixture
def told(run) -> Iterator[list[SchedulerOutput]]:
    """Every step as a worker in another process gets it."""
    steps: list[SchedulerOutput] = []
    worker, execute = run.worker, run.worker.execute_model
    vendors = VendorsRequests()

    def execute_model(output: SchedulerOutput) -> ModelRunnerOutput:
        # One to keep, and one whose lists the worker may take and change.
        for take in (steps.append, vendors.update):
            (copy,) = decode_call(encode_step(0, output)).args
            assert copy == output
            take(copy)
        result = execute(output)
        for req_id, index in result.req_id_to_index.items():
            vendors.tokens[req_id] += result.sampled_token_ids[index]
            assert list(vendors.block_ids[req_id][0]) == worker.requests[req_id].block_ids
        return result

    worker.execute_model = execute_model
    yield steps
    assert not vendors.tokens


@engine(num_blocks=6, enable_prefix_caching=False)
def test_a_preempted_request_is_resumed_with_all_its_tokens_and_blocks(run, told):
    prompts = {"first": [1] * 8, "last": [2] * 8}
    for name, prompt in prompts.items():
        run.add(name, prompt, max_tokens=12)
    while not run.scheduler.num_preemptions:
        run.step()
    generated = list(run.tokens["last"])
    run.finish()

    assert run.tokens == {name: continuation(prompt, 12) for name, prompt in prompts.items()}
    assert [new.req_id for step in told for new in step.scheduled_new_reqs] == ["first", "last"]
    assert [step.preempted_req_ids for step in told if step.preempted_req_ids] == [{"last"}]
    (resumed,) = (step for step in told if step.scheduled_cached_reqs.resumed_req_ids)
    cached = resumed.scheduled_cached_reqs
    row = cached.req_ids.index("last")
    assert cached.resumed_req_ids == {"last"}
    assert cached.all_token_ids == {"last": prompts["last"] + generated}
    assert (cached.num_computed_tokens[row], cached.num_output_tokens[row]) == (0, len(generated))
    assert resumed.num_scheduled_tokens["last"] == 8 + len(generated)
    assert len(cached.new_block_ids[row][0]) == -(-(8 + len(generated)) // run.scheduler.kv_cache_manager.block_size)


@engine(num_blocks=6)
def test_a_preempted_request_that_is_aborted_is_finished(run, told):
    for name in ("first", "last"):
        run.add(name, [1] * 8, max_tokens=12)
    while not run.scheduler.num_preemptions:
        run.step()
    assert run.scheduler.requests["last"].status is RequestStatus.PREEMPTED
    run.core.abort_requests(["last"])
    run.add("last", [3] * 3, max_tokens=2)
    run.finish()

    assert [name for step in told for name in sorted(step.finished_req_ids)].count("last") == 2
    assert run.tokens["last"] == continuation([3] * 3, 2)
    assert not any(step.scheduled_cached_reqs.resumed_req_ids for step in told)


def test_requests_that_are_preempted_between_two_steps_are_resumed_in_the_next(run, told):
    run.add("a", [1, 2, 3], max_tokens=4)
    run.step()
    run.step()
    assert run.core.reset_prefix_cache(reset_running_requests=True)
    run.step()
    run.finish()

    assert [step.preempted_req_ids for step in told] == [set(), set(), {"a"}, set(), set()]
    cached = told[2].scheduled_cached_reqs
    assert (cached.resumed_req_ids, cached.num_output_tokens, told[2].num_scheduled_tokens) == ({"a"}, [2], {"a": 5})
    assert run.tokens["a"] == continuation([1, 2, 3], 4)


@engine(max_num_batched_tokens=8, policy="priority")
def test_a_running_request_that_had_no_part_in_a_step_comes_back_with_its_tokens(run, told):
    run.add("later", [1, 2], max_tokens=4, priority=1)
    run.step()
    run.add("first", list(range(1, 21)), max_tokens=2)
    run.finish()

    assert [step.scheduled_cached_reqs.all_token_ids for step in told if step.scheduled_cached_reqs.all_token_ids] == [
        {"later": [1, 2, *continuation([1, 2], 2)]}
    ]
    assert run.scheduler.num_preemptions == 0


def test_what_the_engine_has_nothing_for_is_empty_as_in_vllm():
    output = SchedulerOutput.make_empty()

    named = vars_of(output) | vars_of(output.scheduled_cached_reqs)
    assert named.pop("preempted_req_ids") is None
    assert not any(named.values())
    assert output.scheduled_cached_reqs.num_reqs == 0


def vars_of(record: object) -> dict[str, object]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if "reqs" not in field.name}
