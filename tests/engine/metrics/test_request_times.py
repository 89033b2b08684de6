"""From single times, each different from the others, to what is told of a request."""

from __future__ import annotations

import pytest

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.stats import FinishedRequestStats, IterationStats
from vllm_ext.engine.core.messages import EngineCoreRequest
from vllm_ext.engine.core.step_stats import EngineCoreEvents
from vllm_ext.engine.metrics.request_times import RequestTimes
from vllm_ext.engine.scheduling.request import EngineCoreOutput


@pytest.fixture
def times() -> RequestTimes:
    """Of a request that arrived at 1, was queued at 3, and admitted at 7."""
    made = RequestTimes()
    request = EngineCoreRequest("core a", [1, 2, 3, 4], SamplingParams(max_tokens=9), frozenset())
    made.begin("a", [request], 1.0)
    made.note_events(EngineCoreEvents({"core a": 3.0}, {"core a": 7.0}))
    return made


def step(times: RequestTimes, token_time: float, now: float, *, stopped=(), **output) -> IterationStats:
    stats = IterationStats()
    times.add_step([EngineCoreOutput("core a", **({"new_token_ids": [5]} | output))], stopped, token_time, now, stats)
    return stats


def test_tokens_are_timed_where_they_are_made_and_the_request_where_it_is_seen(times):
    first = step(times, 12.0, 12.5)
    second = step(times, 20.0, 20.25, num_cached_tokens=2)
    last = step(times, 33.0, 34.0, finish_reason="stop", num_cached_tokens=2)

    assert first.time_to_first_tokens_iter == [11.5]
    assert first.inter_token_latencies_iter == []
    assert [*second.inter_token_latencies_iter, *last.inter_token_latencies_iter] == [8.0, 13.0]
    assert last.finished_requests == [
        FinishedRequestStats(
            finish_reason="stop",
            request_id="a",
            e2e_latency=33.0,
            num_prompt_tokens=4,
            num_generation_tokens=3,
            max_tokens_param=9,
            queued_time=4.0,
            prefill_time=5.0,
            inference_time=26.0,
            decode_time=21.0,
            mean_time_per_output_token=10.5,
            num_cached_tokens=2,
        )
    ]
    assert times.ids() == []


def test_being_admitted_again_does_not_count(times):
    times.note_events(EngineCoreEvents({}, {"core a": 9.0}))

    (ended,) = step(times, 12.0, 12.0, finish_reason="length").finished_requests
    assert (ended.queued_time, ended.prefill_time) == (4.0, 5.0)


def test_several_tokens_of_a_step_are_all_counted_and_timed_once(times):
    stats = step(times, 12.0, 12.0, new_token_ids=[5, 6, 7])

    assert (stats.num_generation_tokens, len(stats.time_to_first_tokens_iter)) == (3, 1)


def test_what_a_stop_string_ended_was_stopped_whatever_the_core_says(times):
    (ended,) = step(times, 12.0, 12.0, stopped=["core a"]).finished_requests

    assert ended.finish_reason == "stop"


def test_a_token_that_comes_after_the_end_is_not_counted(times):
    times.abort(["core a"], 12.0, IterationStats())

    assert step(times, 13.0, 13.0) == IterationStats()


def test_one_that_was_aborted_before_its_first_token_was_prefilled_until_then(times):
    stats = IterationStats()
    times.abort(["core a", "unknown"], 10.0, stats)

    (ended,) = stats.finished_requests
    assert (ended.queued_time, ended.prefill_time, ended.decode_time, ended.e2e_latency) == (4.0, 3.0, 0.0, 9.0)
    assert stats.num_prompt_tokens == 0


def test_events_of_unknown_requests_are_passed_over(times):
    times.note_events(EngineCoreEvents({"gone": 1.0}, {"gone": 2.0}))

    assert times.ids() == ["core a"]
