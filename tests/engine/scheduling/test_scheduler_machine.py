"""Random lives of a scheduler: requests come, run, are preempted, aborted and broken off, in any order.

After each event the books have to agree, and in the end every request has ended exactly once, with its own tokens. The
fake worker checks on its side that whatever a request reads from the cache is what its tokens should have left there.
Layers see everything, or what their sliding windows show them; then blocks change hands while their requests run.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.fake_engine import FakeDispatcher, FakeWorker, Step, continuation, make_vllm_config

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.scheduling.request import Request, RequestStatus
from vllm_ext.errors import EngineError, InvalidRequest

MAX_MODEL_LEN = 40
BLOCK = 4
# Few different beginnings, so that many prompts share one.
PROMPTS = st.builds(
    lambda start, length, rest: [start] * length + rest,
    st.integers(1, 2),
    st.integers(1, 24),
    st.lists(st.integers(1, 3), max_size=8),
)
# Of two layers: all see everything, all have a window, or one of each kind.
WINDOWS = st.none() | st.tuples(st.integers(1, 14), st.integers(1, 14)) | st.tuples(st.integers(1, 14), st.none())


def longest_sequence(num_blocks: int, window: int | None) -> int:
    """Tokens that can be computed of one request alone: as long as what the next one sees, and itself, have blocks."""
    for position in range(MAX_MODEL_LEN):
        first_seen = 0 if window is None else max(0, position + 1 - window)
        if position // BLOCK - first_seen // BLOCK + 1 > num_blocks:
            return position
    return MAX_MODEL_LEN


class Interrupt(KeyboardInterrupt):
    """One that nobody at the keyboard has made."""


class SchedulerMachine(RuleBasedStateMachine):
    """Everything that can happen to a scheduler, and what must never."""

    @initialize(
        num_blocks=st.integers(3, 14),
        max_num_seqs=st.integers(1, 6),
        max_num_batched_tokens=st.integers(1, 40),
        enable_prefix_caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        windows=WINDOWS,
    )
    def start(self, policy: str, windows: tuple[int | None, ...] | None, **options: object) -> None:
        sizes = {"max_model_len": MAX_MODEL_LEN, "block_size": BLOCK}
        layers = {} if windows is None else {"sliding_windows": windows}
        dispatcher = FakeDispatcher(make_vllm_config(policy=policy, **sizes, **layers, **options))
        self.core = EngineCore(dispatcher)
        assert isinstance(dispatcher.worker, FakeWorker)
        self.worker = dispatcher.worker
        self.scheduler = self.core.scheduler
        self.policy = policy
        self.manager = self.scheduler.kv_cache_manager
        self.window = None if windows is None or None in windows else max(windows)
        self.capacity = longest_sequence(self.core.kv_cache_config.num_blocks, self.window)
        self.requests: dict[str, Request] = {}
        self.tokens: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        self.num_admissions = 0
        self.num_given_back = 0
        self.num_hits_behind_a_window = 0

    # What can happen ------------------------------------------------------------------------------------------------

    @rule(prompt=PROMPTS, max_tokens=st.integers(1, 30), priority=st.integers(-2, 2))
    def add(self, prompt: list[int], max_tokens: int, priority: int) -> None:
        name = str(len(self.requests))
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        request = Request(name, prompt, params, priority=priority if self.policy == "priority" else 0)
        if len(prompt) > self.capacity:
            with pytest.raises(InvalidRequest):
                self.core.add_request(request)
            return
        self.core.add_request(request)
        self.requests[name], self.tokens[name] = request, []

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.make_step()

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(self.scheduler.requests)), min_size=1, max_size=3))
        self.core.abort_requests([*names, "never seen"])
        for name in set(names):
            self.end(name, "abort")

    @precondition(lambda self: self.scheduler.running)
    @rule()
    def preempt_all(self) -> None:
        before, num_running = self.scheduler.num_preemptions, len(self.scheduler.running)
        assert self.core.reset_prefix_cache(reset_running_requests=True)
        assert self.scheduler.num_preemptions == before + num_running

    @rule()
    def reset_prefix_cache(self) -> None:
        assert self.core.reset_prefix_cache() == (not self.scheduler.running)

    @precondition(lambda self: self.scheduler.requests)
    @rule(is_interrupt=st.booleans())
    def break_a_step_off(self, is_interrupt: bool) -> None:
        def fail() -> None:
            self.worker.before_step = lambda: None
            raise Interrupt if is_interrupt else ValueError

        self.worker.before_step = fail
        in_flight = list(self.scheduler.requests)
        with pytest.raises(Interrupt if is_interrupt else EngineError):
            self.core.step()
        for name in in_flight:
            self.end(name, "abort")

    # What must hold -------------------------------------------------------------------------------------------------

    @invariant()
    def the_books_agree(self) -> None:
        self.core.check_integrity()
        assert set(self.requests) == {*self.scheduler.requests, *self.ended}

    @invariant()
    def nobody_overtakes(self) -> None:
        if self.policy == "fcfs" and self.scheduler.waiting and self.scheduler.running:
            assert self.scheduler.running[-1].queue_key < self.scheduler.waiting[0].queue_key

    def make_step(self) -> None:
        first = self.scheduler.running[0] if self.scheduler.running else None
        num_preemptions, was_busy = self.scheduler.num_preemptions, self.core.has_requests()
        for output in self.core.step():
            name = output.request_id
            assert name not in self.ended, "a token for a request that has ended"
            assert output.new_token_ids
            self.tokens[name] += output.new_token_ids
            if output.finish_reason is not None:
                self.end(name, output.finish_reason)
        if not was_busy:
            return
        step = self.worker.steps[-1]
        if first is not None:
            assert first.request_id in step.num_scheduled_tokens, "the first request made no progress"
        elif self.scheduler.requests or self.scheduler.waiting:
            assert step.num_scheduled_tokens, "nothing runs although something waits"
        self.num_admissions += len(step.new)
        self.look_at_blocks(step)
        if self.scheduler.num_preemptions > num_preemptions:
            assert not step.new, "a request was admitted in a step in which others gave their blocks up"
        for name in step.new:
            assert all(self.requests[name].queue_key < waiting.queue_key for waiting in self.scheduler.waiting)

    def look_at_blocks(self, step: Step) -> None:
        """A request has no more blocks than its window and a step need, and less of them only with a window."""
        at_once = (self.window or 0) - 1 + self.scheduler.max_num_batched_tokens
        for request in self.scheduler.running:
            given_back = self.manager.num_given_back_by(request)
            if self.window is None:
                assert given_back == 0
            else:
                assert self.manager.num_blocks_of(request) <= -(-at_once // BLOCK) + 1
            self.num_given_back = max(self.num_given_back, given_back)
            self.num_hits_behind_a_window += request.request_id in step.new and given_back > 0

    def end(self, name: str, reason: str) -> None:
        assert name not in self.ended, "a request ended twice"
        self.ended[name] = reason

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        in_flight = self.scheduler.requests.values()
        # Each step computes a token of the first request; a request that is preempted for others begins anew, at most
        # once for each token of those before it.
        limit = 10 + sum(MAX_MODEL_LEN for _ in in_flight) * (1 + len(in_flight))
        num_steps = 0
        while self.core.has_requests():
            self.make_step()
            self.core.check_integrity()
            num_steps += 1
            assert num_steps <= limit, f"requests starve: {list(self.scheduler.requests.values())}"
        assert set(self.ended) == set(self.requests), "every request ended"
        assert self.worker.requests == {}
        for name, request in self.requests.items():
            prompt = request.all_token_ids[: request.num_prompt_tokens]
            tokens = self.tokens[name]
            assert tokens == continuation(prompt, len(tokens))
            assert request.status.finish_reason == self.ended[name]
            assert self.ended[name] in ("length", "abort")
            if self.ended[name] == "length":
                limit = min(MAX_MODEL_LEN, self.capacity + 1) - len(prompt)
                assert len(tokens) == min(request.sampling_params.max_tokens or 0, limit)
        self.core.shutdown()


def lives(num_lives: int) -> settings:
    return settings(
        max_examples=num_lives,
        stateful_step_count=30,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def test_random_lives():
    run_state_machine_as_test(SchedulerMachine, settings=lives(500))


@pytest.mark.slow
def test_many_more_random_lives():
    run_state_machine_as_test(SchedulerMachine, settings=lives(10000))


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
@pytest.mark.parametrize("windows", [None, (11, 12), (5, None)], ids=["sees all", "windows", "one window"])
def test_a_life_of_the_machine_has_what_it_is_about(policy, enable_prefix_caching, windows):
    """The events that the machine can bring about do happen: preemption for blocks, hits, chunks, and with a window
    blocks that are given back, and hits of which a beginning is left out.
    """
    machine = SchedulerMachine()
    machine.start(
        policy=policy,
        windows=windows,
        num_blocks=9 if windows != (11, 12) else 7,
        max_num_seqs=4,
        max_num_batched_tokens=7,
        enable_prefix_caching=enable_prefix_caching,
    )
    for number in range(12):
        machine.add([1] * 9 + [2, 3] * (number % 3), max_tokens=20, priority=number % 3 - 1)
        machine.step(2)
        if number == 6:
            (name, *_) = machine.scheduler.requests
            machine.core.abort_requests([name])
            machine.end(name, "abort")
    machine.teardown()

    stats = machine.core.get_stats()
    assert stats.num_preemptions > 0
    assert (stats.prefix_cache_hits > 0) == enable_prefix_caching
    assert machine.num_admissions > len(machine.requests) - 1
    assert any(step.num_scheduled_tokens.get("0", 0) == 7 for step in machine.worker.steps), "prompt 0 came in chunks"
    assert sorted(machine.ended.values()) == ["abort"] + ["length"] * 11
    assert all(request.status is not RequestStatus.PREEMPTED for request in machine.requests.values())
    all_have_one = windows == (11, 12)
    assert (machine.num_given_back > 0) == all_have_one
    assert (machine.num_hits_behind_a_window > 0) == (all_have_one and enable_prefix_caching)
    # 20 tokens behind 9 to 13 are more than the 7 blocks hold.
    assert not all_have_one or machine.capacity == MAX_MODEL_LEN > 7 * BLOCK
