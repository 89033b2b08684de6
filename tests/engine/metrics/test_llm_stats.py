"""Each statistic of an ``LLM`` against a count that the test keeps by itself: of tokens that come, of what the
worker was asked to do, and of a clock that goes one second in each step.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from itertools import pairwise

import pytest
from support.stats import FakeClock, Kept

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm_engine import LLMEngine
from vllm_ext.errors import EngineError, InvalidRequest

START = FakeClock().now


def greedy(max_tokens: int = 5, **params) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)


class Observed:
    """An engine whose steps are made here, and counted by their outputs and by the worker's own record."""

    def __init__(self, llm, clock: FakeClock, kept: Kept) -> None:
        self.llm = llm
        self.engine: LLMEngine = llm.llm_engine
        self.worker = llm.dispatcher.worker
        self.clock = clock
        self.kept = kept
        self.arrived: dict[str, float] = {}
        self.num_prompt_tokens: dict[str, int] = {}
        self.tokens_at: dict[str, list[float]] = defaultdict(list)
        self.ended_at: dict[str, float] = {}
        self.per_step: list[tuple[int, int]] = []
        """Running and waiting requests after each step that brought tokens."""

    def add(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        self.engine.add_request(request_id, prompt, params)
        self.arrived[request_id] = self.clock.now
        self.num_prompt_tokens[request_id] = len(prompt)

    def step(self) -> None:
        outputs = self.engine.step()
        for output in outputs:
            grown = len(output.outputs[0].token_ids) - len(self.tokens_at[output.request_id])
            self.tokens_at[output.request_id] += [self.clock.now] * grown
            if output.finished:
                self.ended_at[output.request_id] = self.clock.now
        if outputs:
            running = set(self.worker.steps[-1].num_scheduled_tokens) - set(self.ended_at)
            in_flight = set(self.arrived) - set(self.ended_at)
            self.per_step.append((len(running), len(in_flight - running)))

    def finish(self) -> Kept:
        """Make all steps that are left, and end the engine, so that everything has been told."""
        while self.engine.has_unfinished_requests():
            self.step()
        self.llm.close()
        return self.kept

    def admitted_at(self, request_id: str) -> float:
        number = next(i for i, step in enumerate(self.worker.steps) if request_id in step.new)
        return START + number


@pytest.fixture
def observe(make_llm):
    def make(**options) -> Observed:
        clock, kept = FakeClock(), Kept()

        def prepare(worker) -> None:
            worker.before_step = lambda: clock.advance(1.0)

        llm = make_llm(clock=clock, stat_logger_factories=[kept.make], prepare=prepare, **options)
        return Observed(llm, clock, kept)

    return make


CROWDED = {"num_blocks": 24, "max_num_seqs": 6, "max_model_len": 60, "max_num_batched_tokens": 512}
"""So few blocks that requests are preempted, and so many tokens in a step that all that run are in it."""


@pytest.fixture
def crowd(observe):
    """Forty requests of random lengths, some with a common beginning, which come while others run."""
    seen = observe(**CROWDED)
    choice = random.Random(7)
    waiting = [f"r{number}" for number in range(40)]
    while waiting or seen.engine.has_unfinished_requests():
        for request_id in [waiting.pop(0) for _ in range(min(len(waiting), choice.randrange(4)))]:
            prompt = choice.choice([[9] * 12, []]) + [choice.randrange(1, 500) for _ in range(choice.randint(1, 20))]
            seen.add(request_id, prompt, greedy(choice.randint(1, 25)))
        if seen.engine.has_unfinished_requests():
            seen.step()
    seen.finish()
    return seen


def test_tokens_of_prompts_and_of_completions_are_counted(crowd):
    assert crowd.kept.total("num_prompt_tokens") == sum(crowd.num_prompt_tokens.values())
    assert crowd.kept.total("num_generation_tokens") == sum(map(len, crowd.tokens_at.values())) > 200


def test_running_and_waiting_requests_are_those_that_the_worker_was_given_and_the_rest(crowd):
    told = [(stats.num_running_reqs, stats.num_waiting_reqs) for stats, _ in crowd.kept.steps]

    assert told == crowd.per_step
    assert max(waiting for _, waiting in told) > 2, "requests waited"


def test_preemptions_are_the_times_a_request_came_to_the_worker_again(crowd):
    num_again = sum(len(step.new) for step in crowd.worker.steps) - len(crowd.arrived)

    assert crowd.kept.total("num_preempted_reqs") == num_again > 3
    assert crowd.kept.records[-1][0].num_preemptions == num_again


def test_queries_and_hits_of_the_prefix_cache_are_what_the_worker_was_told_at_each_admission(crowd):
    found = [stats.prefix_cache_stats for stats, _ in crowd.kept.records]

    assert sum(each.requests for each in found) == sum(len(step.new) for step in crowd.worker.steps)
    assert sum(each.hits for each in found) == sum(sum(step.cached.values()) for step in crowd.worker.steps) > 100
    assert sum(each.queries for each in found) == sum(
        crowd.num_prompt_tokens[request_id] + num_generated
        for step in crowd.worker.steps
        for request_id, num_generated in step.new.items()
    )


def test_the_time_to_the_first_token_begins_with_the_arrival(crowd):
    expected = [times[0] - crowd.arrived[request_id] for request_id, times in crowd.tokens_at.items()]

    assert sorted(crowd.kept.all_of("time_to_first_tokens_iter")) == sorted(expected)
    assert len(set(expected)) > 5, "some waited for long"


def test_inter_token_latencies_are_the_differences_between_a_requests_tokens(crowd):
    expected = [later - earlier for times in crowd.tokens_at.values() for earlier, later in pairwise(times)]

    assert sorted(crowd.kept.all_of("inter_token_latencies_iter")) == sorted(expected)
    assert max(expected) > 1, "a preempted request was computed again before it got its next token"


def test_a_request_that_has_ended_is_described_once_with_its_times(crowd):
    finished = crowd.kept.finished

    assert set(finished) == set(crowd.arrived)
    for request_id, stats in finished.items():
        arrival, admitted = crowd.arrived[request_id], crowd.admitted_at(request_id)
        times = crowd.tokens_at[request_id]
        assert stats.e2e_latency == crowd.ended_at[request_id] - arrival
        assert stats.queued_time == admitted - arrival
        assert stats.prefill_time == times[0] - admitted
        assert stats.decode_time == times[-1] - times[0]
        assert stats.inference_time == times[-1] - admitted
        assert stats.num_prompt_tokens == crowd.num_prompt_tokens[request_id]
        assert stats.num_generation_tokens == len(times)
        assert stats.mean_time_per_output_token == pytest.approx((times[-1] - times[0]) / max(len(times) - 1, 1))
        assert stats.finish_reason == "length"
    assert max(stats.queued_time for stats in finished.values()) > 3


def test_the_kv_cache_in_use_is_the_blocks_of_what_runs(observe):
    seen = observe(num_blocks=50, block_size=4, enable_prefix_caching=False)
    prompts = {"a": [1] * 9, "b": [2] * 3}
    for request_id, prompt in prompts.items():
        seen.add(request_id, prompt, greedy(6))
    kept = seen.finish()

    # After its n-th token a request has its prompt and n - 1 tokens in the cache.
    expected = [sum(-(-(len(p) + n - 1) // 4) for p in prompts.values()) / 50 for n in range(1, 6)]
    assert [stats.kv_cache_usage for stats, _ in kept.steps] == pytest.approx([*expected, 0.0])


def test_why_requests_ended_is_told_of_each(observe):
    seen = observe(eos_token_id=0)
    seen.worker.next_token = lambda token_ids: 0 if len(token_ids) == 7 else 5
    seen.add("eos", [1, 2, 3], greedy(20))
    seen.add("length", [1, 2, 3], greedy(2))
    seen.add("stop id", [1, 2, 3], greedy(20, stop_token_ids=[5]))
    seen.add("aborted", [1, 2, 3], greedy(20))
    seen.add("aborted early", [1, 2, 3], greedy(20))
    seen.engine.abort_request("aborted early")
    seen.step()
    seen.engine.abort_request("aborted")
    finished = seen.finish().finished

    assert {request_id: stats.finish_reason for request_id, stats in finished.items()} == {
        "eos": "stop",
        "length": "length",
        "stop id": "stop",
        "aborted": "abort",
        "aborted early": "abort",
    }
    assert [finished[name].num_generation_tokens for name in ("eos", "aborted", "aborted early")] == [5, 1, 0]


def test_a_stop_string_ends_a_request_as_stop_after_the_tokens_that_came(observe):
    seen = observe()
    seen.add("whole", "the quick", greedy(12))
    whole = seen.engine.step
    texts = []
    while seen.engine.has_unfinished_requests():
        texts += [(output.outputs[0].text, len(output.outputs[0].token_ids)) for output in whole()]
    text = texts[-1][0]
    stop = text[len(text) // 2 :][:2]
    expected = next(count for text, count in texts if stop in text)
    seen.engine.add_request("stopped", "the quick", greedy(12, stop=[stop]))
    stopped = seen.finish().finished["stopped"]

    assert (stopped.finish_reason, stopped.num_generation_tokens) == ("stop", expected)
    assert expected < 12


def test_what_waits_before_it_is_aborted_was_in_the_queue_until_then(observe):
    seen = observe(max_num_seqs=1)
    seen.add("first", [1, 2], greedy(9))
    seen.add("second", [3, 4], greedy(9))
    for _ in range(4):
        seen.step()
    seen.engine.abort_request("second")
    stats = seen.finish().finished["second"]

    assert (stats.queued_time, stats.prefill_time, stats.inference_time, stats.e2e_latency) == (4.0, 0.0, 0.0, 4.0)


def test_after_an_abort_of_everything_nothing_is_said_to_run(observe):
    seen = observe()
    seen.add("a", [1, 2], greedy(9))
    seen.step()
    seen.engine.abort_request("a")
    seen.llm.close()

    stats, brought = seen.kept.records[-1]
    assert (stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage) == (0, 0, 0.0)
    assert [each.finish_reason for each in brought.finished_requests] == ["abort"]


def test_a_step_that_fails_ends_its_requests_as_aborted(observe):
    seen = observe()
    seen.add("a", [1, 2], greedy(9))
    seen.step()

    def fail() -> None:
        raise RuntimeError("the device is gone")

    seen.worker.before_step = fail
    with pytest.raises(EngineError, match="the device is gone"):
        seen.engine.step()
    seen.llm.close()

    assert seen.kept.finished["a"].finish_reason == "abort"
    assert seen.kept.records[-1][0].num_running_reqs == 0


def test_a_request_that_is_refused_is_not_told(observe):
    seen = observe(max_model_len=8)
    with pytest.raises(InvalidRequest):
        seen.engine.add_request("long", [1] * 9, greedy())
    seen.add("a", [1, 2], greedy(2))

    assert list(seen.finish().finished) == ["a"]


def test_each_completion_of_a_prompt_is_a_request_and_the_prompt_is_told_once(observe):
    seen = observe()
    seen.engine.add_request("three", [1, 2, 3, 4], SamplingParams(n=3, max_tokens=4, ignore_eos=True))
    while seen.engine.has_unfinished_requests():
        seen.engine.step()
    seen.llm.close()
    ended = seen.kept.all_of("finished_requests")

    assert [(each.request_id, each.num_generation_tokens) for each in ended] == [("three", 4)] * 3
    assert (seen.kept.all_of("n_params_iter"), seen.kept.all_of("max_num_generation_tokens_iter")) == ([3], [4])


def test_a_cached_prompt_is_told_with_its_request(observe):
    seen = observe(block_size=4)
    seen.add("first", [7] * 13, greedy(2))
    while seen.engine.has_unfinished_requests():
        seen.step()
    seen.add("second", [7] * 13, greedy(2))
    finished = seen.finish().finished

    assert [finished[name].num_cached_tokens for name in ("first", "second")] == [0, 12]


def test_the_time_of_day_of_a_step_goes_with_the_clock(observe):
    before = time.time()
    seen = observe()
    seen.add("a", [1, 2], greedy(3))
    stamps = [brought.iteration_timestamp for _, brought in seen.finish().steps]

    assert before + 1 <= stamps[0] <= time.time() + 1
    assert [later - stamps[0] for later in stamps] == pytest.approx([0.0, 1.0, 2.0])


def test_asking_the_engine_for_its_stats_takes_nothing_from_its_loggers(observe):
    seen = observe()
    seen.add("a", [1, 2, 3], greedy(3))
    while seen.engine.has_unfinished_requests():
        seen.step()
        seen.engine.get_stats()
    asked = seen.engine.get_stats()
    found = [stats.prefix_cache_stats for stats, _ in seen.finish().records]

    assert sum(each.queries for each in found) == asked.prefix_cache_queries == 3
    assert asked.prefix_cache_stats.queries == 0


def test_without_a_logger_nothing_is_collected(make_llm):
    clock = FakeClock()
    asked = []
    llm = make_llm(clock=lambda: asked.append(1) or clock())
    llm.generate([[1, 2, 3]], greedy(4))

    engine = llm.llm_engine
    assert engine.engine_core.make_step_stats() is None
    assert engine._stats._times.ids() == []
    assert len(asked) == 2, "when the engine was made, and for the one request; not in a step"
