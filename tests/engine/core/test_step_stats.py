"""What an engine core tells of a step, whatever its scheduler is."""

from __future__ import annotations

import msgspec
import pytest
from support.core_run import engine
from support.stats import FakeClock

from vllm_ext.contracts.stats import PrefixCacheStats, SchedulerStats
from vllm_ext.engine.core.messages import EngineCoreOutputs, FromCore
from vllm_ext.engine.core.step_stats import StepRecorder, StepStats


def test_nothing_is_recorded_until_it_is_asked_for(run):
    run.add("a", [1, 2])
    run.step()
    assert run.core.take_step_stats() is None

    run.core.record_stats()
    run.step()
    assert run.core.take_step_stats().scheduler_stats.num_running_reqs == 1
    assert run.core.take_step_stats() is None


def test_each_event_is_told_once(run):
    run.core.record_stats()
    run.add("a", [1, 2], max_tokens=3)
    run.add("b", [1, 2], max_tokens=3)
    told = []
    while run.core.has_requests():
        run.step()
        told.append(run.core.take_step_stats().events)

    assert [sorted(events.queued) for events in told] == [["a", "b"], [], [], []]
    assert [sorted(events.scheduled) for events in told] == [["a", "b"], [], [], []]


@engine(num_blocks=6, block_size=4, max_model_len=24, enable_prefix_caching=False)
def test_a_preempted_request_is_admitted_again(run):
    run.core.record_stats()
    run.add("a", [1] * 8, max_tokens=12)
    run.add("b", [2] * 8, max_tokens=12)
    told = []
    while run.core.has_requests():
        run.step()
        told.append(run.core.take_step_stats())

    assert sum(stats.num_preempted_reqs for stats in told) == run.scheduler.num_preemptions > 0
    admitted = [request_id for stats in told for request_id in stats.events.scheduled]
    assert len(admitted) == 2 + run.scheduler.num_preemptions


def test_what_counts_since_the_start_is_told_as_what_is_new():
    recorder = StepRecorder(FakeClock())
    first = recorder.make(SchedulerStats(1, 2, 3, 0.5, 100, 40, 7))
    second = recorder.make(SchedulerStats(1, 2, 5, 0.5, 130, 60, 9))

    assert (first.num_preempted_reqs, second.num_preempted_reqs) == (3, 2)
    assert first.scheduler_stats.prefix_cache_stats == PrefixCacheStats(7, 100, 40)
    assert second.scheduler_stats.prefix_cache_stats == PrefixCacheStats(2, 30, 20)
    assert second.scheduler_stats.prefix_cache_queries == 130


@pytest.mark.parametrize("with_stats", [False, True])
def test_it_passes_to_another_process(run, with_stats):
    if with_stats:
        run.core.record_stats()
    run.add("a", [1, 2])
    sent = EngineCoreOutputs(run.step(), run.core.take_step_stats())

    received = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=FromCore)

    assert received == sent
    assert isinstance(received.step_stats, StepStats) == with_stats
