"""The scheduling policy ``priority``: lower values first, equals in the order of their arrival."""

from __future__ import annotations

import pytest
from support.core_run import engine
from support.fake_engine import continuation

from vllm_ext.engine.scheduling.request import RequestStatus
from vllm_ext.errors import InvalidRequest


@engine(policy="priority", max_num_seqs=1)
def test_with_priorities_lower_values_come_first_and_equals_in_the_order_of_their_arrival(run):
    for name, priority in (("a", 0), ("b", 1), ("c", -1), ("d", 0), ("e", -1)):
        run.add(name, [1], max_tokens=2, priority=priority)
    run.finish()

    assert list(run.reasons) == ["c", "e", "a", "d", "b"]


@engine(policy="priority", max_num_seqs=1)
def test_a_request_that_runs_is_not_interrupted_for_one_of_a_lower_value(run):
    run.add("running", [1], max_tokens=4, priority=9)
    run.step()
    run.add("urgent", [1], max_tokens=2, priority=-9)
    run.finish()

    assert list(run.reasons) == ["running", "urgent"]
    assert run.scheduler.num_preemptions == 0


@engine(policy="priority", num_blocks=6, enable_prefix_caching=False)
def test_with_priorities_the_highest_value_is_preempted_whenever_it_came(run):
    prompts = {"patient": [1] * 8, "urgent": [2] * 8}
    run.add("patient", prompts["patient"], max_tokens=12, priority=5)
    run.step()
    run.add("urgent", prompts["urgent"], max_tokens=12, priority=1)
    while not run.scheduler.num_preemptions:
        run.step()

    assert run.scheduler.requests["patient"].status is RequestStatus.PREEMPTED
    run.finish()
    assert list(run.reasons) == ["urgent", "patient"]
    assert run.tokens == {name: continuation(prompt, 12) for name, prompt in prompts.items()}


@engine(policy="priority", num_blocks=6, enable_prefix_caching=False)
def test_a_step_that_preempts_admits_nobody_however_urgent(run):
    for name in ("a", "b"):
        run.add(name, [1] * 8, max_tokens=12)
    while not run.scheduler.num_preemptions:
        before = list(run.scheduler.running)
        if len(before) == 2 and all(request.num_computed_tokens == 12 for request in before):
            run.add("urgent", [3], max_tokens=2, priority=-1)
        run.step()

    assert run.worker.steps[-1].new == {}
    assert "urgent" in run.scheduler.requests
    run.finish()
    assert next(iter(run.reasons)) == "urgent"


def test_a_priority_is_refused_where_the_policy_knows_none(run):
    with pytest.raises(InvalidRequest, match=r"priority is -1, and engine.scheduling_policy is 'fcfs'.*'priority'"):
        run.add("a", [1], priority=-1)
