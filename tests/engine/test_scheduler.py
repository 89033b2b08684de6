"""The scheduler, seen through an engine core on a worker that keeps the books of its KV cache.

Every test here also tests the slots: the fake worker refuses a step that computes a token anywhere else than in the
blocks of its request, or that finds an earlier token overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engine import FakeDispatcher, FakeWorker, continuation, make_vllm_config

from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core import EngineCore
from vllm_ext.engine.request import EngineCoreOutput, Request, RequestStatus
from vllm_ext.errors import EngineError, InvalidRequest


class Run:
    """An engine core, its worker, and all that came out of it."""

    def __init__(self, **options: object) -> None:
        dispatcher = FakeDispatcher(make_vllm_config(**options))
        self.core = EngineCore(dispatcher)
        assert isinstance(dispatcher.worker, FakeWorker)
        self.worker = dispatcher.worker
        self.scheduler = self.core.scheduler
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}

    def add(self, request_id: str, prompt: list[int], max_tokens: int = 5, priority: int = 0, **params: object) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)
        self.core.add_request(Request(request_id, prompt, sampling, frozenset({0}), priority=priority))
        self.tokens[request_id] = []

    def step(self) -> list[EngineCoreOutput]:
        outputs = self.core.step()
        for output in outputs:
            self.tokens[output.request_id] += output.new_token_ids
            if output.finish_reason is not None:
                self.reasons[output.request_id] = output.finish_reason
        self.scheduler.check_integrity()
        return outputs

    def finish(self) -> None:
        while self.core.has_requests():
            self.step()


@pytest.fixture
def run(request) -> Iterator[Run]:
    made = Run(**getattr(request, "param", {}))
    yield made
    made.finish()
    assert made.worker.requests == {}
    assert made.scheduler.kv_cache_manager.block_pool.num_free_blocks == made.core.kv_cache_config.num_blocks
    made.core.shutdown()


def engine(**options: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("run", [options], indirect=True, ids=[""])


def test_a_step_computes_a_prompt_then_a_token_at_a_time(run):
    run.add("a", [1, 2, 3], max_tokens=3)
    run.finish()

    assert [step.num_scheduled_tokens for step in run.worker.steps] == [{"a": 3}, {"a": 1}, {"a": 1}, {}]
    assert run.tokens["a"] == continuation([1, 2, 3], 3)


def test_requests_join_and_leave_while_others_run(run):
    run.add("long", [1, 2], max_tokens=8)
    run.step()
    run.add("short", [3], max_tokens=2)
    run.finish()

    assert [set(step.num_scheduled_tokens) for step in run.worker.steps][:4] == [
        {"long"}, {"long", "short"}, {"long", "short"}, {"long"},
    ]  # fmt: skip
    assert run.tokens == {"long": continuation([1, 2], 8), "short": continuation([3], 2)}


@engine(max_num_batched_tokens=8)
def test_a_long_prompt_is_computed_in_chunks_beside_a_decoding_request(run):
    run.add("decoding", [1], max_tokens=6)
    run.step()
    run.add("long", list(range(1, 21)), max_tokens=2)
    run.finish()

    assert [step.num_scheduled_tokens for step in run.worker.steps][1:5] == [
        {"decoding": 1, "long": 7},
        {"decoding": 1, "long": 7},
        {"decoding": 1, "long": 6},
        {"decoding": 1, "long": 1},
    ]
    assert run.tokens["long"] == continuation(list(range(1, 21)), 2)


@engine(max_num_seqs=2)
def test_no_more_requests_run_than_allowed_and_the_first_to_come_is_the_first_to_run(run):
    for name in "abc":
        run.add(name, [1], max_tokens=3)
    run.step()

    assert [request.request_id for request in run.scheduler.running] == ["a", "b"]
    assert [request.request_id for request in run.scheduler.waiting] == ["c"]


@engine(num_blocks=6)
def test_when_blocks_run_out_the_last_request_is_preempted_and_computed_again(run):
    prompts = {"first": [1] * 8, "last": [2] * 8}
    for name, prompt in prompts.items():
        run.add(name, prompt, max_tokens=12)
    while not run.scheduler.num_preemptions:
        run.step()
    victim = run.scheduler.requests["last"]
    generated = list(run.tokens["last"])

    assert (victim.status, victim.num_computed_tokens) == (RequestStatus.PREEMPTED, 0)
    assert generated
    run.finish()
    assert run.tokens == {name: continuation(prompt, 12) for name, prompt in prompts.items()}
    assert [step.new for step in run.worker.steps if step.new] == [{"first": 0, "last": 0}, {"last": len(generated)}]
    assert any("last" in step.finished and "first" in step.num_scheduled_tokens for step in run.worker.steps)


@engine(num_blocks=5, max_num_seqs=2)
def test_a_preempted_request_runs_before_those_that_wait(run):
    for name in ("a", "b", "c"):
        run.add(name, [1] * 8, max_tokens=12)
    while not run.scheduler.num_preemptions:
        run.step()

    assert [request.request_id for request in run.scheduler.waiting] == ["b", "c"]


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


def test_how_things_stand_can_be_asked_between_steps(run):
    for name in ("a", "b", "c"):
        run.add(name, [1] * 8, max_tokens=3)
    before = run.core.get_stats()
    run.step()
    after = run.core.get_stats()
    run.finish()

    assert (before.num_running_reqs, before.num_waiting_reqs, before.kv_cache_usage) == (0, 3, 0)
    assert (after.num_running_reqs, after.num_waiting_reqs) == (3, 0)
    # One block shared by all, and one of its own for each.
    assert after.kv_cache_usage == pytest.approx(4 / run.core.kv_cache_config.num_blocks)
    assert run.core.get_stats().kv_cache_usage == 0


class TestTheCheck:
    """``check_integrity`` finds what no step should ever leave behind."""

    @pytest.fixture
    def busy(self):
        run = Run(max_num_seqs=2)
        for name in ("a", "b", "c", "d"):
            run.add(name, [1] * 6)
        run.step()
        return run

    def test_a_request_in_no_list(self, busy):
        busy.scheduler.waiting.pop()
        with pytest.raises(EngineError, match="requests in flight and requests in the lists differ"):
            busy.scheduler.check_integrity()

    def test_requests_out_of_order(self, busy):
        busy.scheduler.running.reverse()
        with pytest.raises(EngineError, match="requests are out of their order"):
            busy.scheduler.check_integrity()

    @pytest.mark.parametrize(
        ("name", "attribute", "value"),
        [
            ("a", "num_computed_tokens", 7),
            ("a", "num_slots", 4),
            ("a", "status", RequestStatus.WAITING),
            ("c", "status", RequestStatus.RUNNING),
            ("c", "num_computed_tokens", 1),
        ],
    )
    def test_a_request_whose_books_do_not_fit(self, busy, name, attribute, value):
        setattr(busy.scheduler.requests[name], attribute, value)
        with pytest.raises(EngineError, match=f"do not fit each other: .*Request '{name}'"):
            busy.scheduler.check_integrity()

    def test_blocks_in_use_though_nothing_is_in_flight(self, run):
        blocks = run.scheduler.kv_cache_manager.block_pool.allocate(1)
        run.scheduler.kv_cache_manager.check_integrity = lambda: None
        with pytest.raises(EngineError, match="no request is in flight, yet only"):
            run.scheduler.check_integrity()
        del run.scheduler.kv_cache_manager.check_integrity
        run.scheduler.kv_cache_manager.block_pool.free(blocks)


@engine(num_blocks=4, max_num_batched_tokens=4)
def test_a_prompt_is_not_begun_before_the_whole_of_it_fits(run):
    run.add("small", [1] * 4, max_tokens=8)
    run.add("large", [2] * 12, max_tokens=1)
    run.finish()

    assert run.scheduler.num_preemptions == 0
    assert run.tokens["large"] == continuation([2] * 12, 1)


@engine(num_blocks=3, max_model_len=100)
def test_a_request_alone_ends_where_the_cache_does(run):
    run.add("a", [1] * 5, max_tokens=50)
    run.finish()

    # 12 slots, and the last token needs none
    assert (len(run.tokens["a"]), run.reasons["a"]) == (13 - 5, "length")
    assert run.scheduler.num_preemptions == 0


@engine(max_model_len=20)
def test_prompt_and_output_end_at_the_model_length(run):
    run.add("a", [1] * 15, max_tokens=50)
    run.finish()

    assert (len(run.tokens["a"]), run.reasons["a"]) == (5, "length")


@pytest.mark.parametrize(
    ("params", "num_tokens", "reason", "stop_reason"),
    [
        ({}, 3, "stop", None),  # end of sequence
        ({"ignore_eos": True}, 6, "length", None),
        ({"stop_token_ids": [22]}, 2, "stop", 22),
        ({"ignore_eos": True, "stop_token_ids": [0]}, 3, "stop", 0),
        ({"max_tokens": 2}, 2, "length", None),
        ({"max_tokens": 3}, 3, "stop", None),  # end of sequence in the last token allowed
    ],
)
def test_what_ends_a_request(run, params, num_tokens, reason, stop_reason):
    script = [21, 22, 0, 23, 24, 25, 26]
    run.worker.next_token = lambda token_ids: script[len(token_ids) - 1]
    run.add("a", [1], **{"max_tokens": 6} | params)
    outputs = []
    while run.core.has_requests():
        outputs += run.step()

    assert run.tokens["a"] == script[:num_tokens]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == (reason, stop_reason)


@engine(max_model_len=20)
def test_a_prompt_that_leaves_no_room_is_refused_with_the_lengths_while_others_go_on(run):
    run.add("good", [1] * 19)
    with pytest.raises(InvalidRequest, match=r"20 tokens.*max_model_len.*is 20; give at most 19"):
        run.add("bad", [1] * 20)
    run.finish()

    assert run.tokens == {"good": continuation([1] * 19, 1)}


@engine(num_blocks=3)
def test_a_prompt_larger_than_the_whole_cache_is_refused_with_the_sizes(run):
    with pytest.raises(InvalidRequest, match=r"13 tokens, and the whole KV cache holds 12.*kv_cache_memory"):
        run.add("bad", [1] * 13)


def test_an_id_in_flight_cannot_be_used_again_and_one_that_ended_can(run):
    run.add("a", [1], max_tokens=1)
    with pytest.raises(InvalidRequest, match="'a' is in flight"):
        run.add("a", [2])
    run.step()
    run.add("a", [2, 3], max_tokens=2)
    run.finish()

    assert run.tokens["a"] == continuation([2, 3], 2)


def test_an_aborted_request_gives_its_blocks_back_and_the_worker_hears_of_it(run):
    run.add("running", [1] * 9, max_tokens=50)
    run.step()
    run.add("waiting", [1])
    run.core.abort_requests(["running", "waiting", "never seen"])

    assert run.scheduler.kv_cache_manager.block_pool.num_free_blocks == run.core.kv_cache_config.num_blocks
    run.finish()
    assert [step.finished for step in run.worker.steps] == [set(), {"running"}]


def test_the_last_step_has_no_tokens_and_tells_the_worker_who_ended(run):
    run.add("a", [1], max_tokens=1)
    run.step()

    assert run.core.has_requests()
    assert run.step() == []
    assert not run.core.has_requests()
    assert (run.worker.steps[-1].num_scheduled_tokens, run.worker.steps[-1].finished) == ({}, {"a"})


def test_a_step_with_nothing_to_do_does_not_reach_the_worker(run):
    assert run.step() == []
    assert run.worker.steps == []


@pytest.mark.parametrize("sampled", [[], [[]]], ids=["left out", "no token"])
def test_a_worker_that_gives_no_token_where_one_is_due_is_an_error(run, sampled):
    ids = ["a"][: len(sampled)]
    run.worker.execute_model = lambda _: ModelRunnerOutput(ids, dict.fromkeys(ids, 0), sampled)
    run.add("a", [1])
    with pytest.raises(EngineError, match="returned 0 tokens for request 'a', where one was due"):
        run.step()
    del run.worker.execute_model


@engine(max_num_batched_tokens=4)
def test_a_worker_that_gives_a_token_before_the_prompt_is_complete_is_an_error(run):
    run.worker.execute_model = lambda _: ModelRunnerOutput(["a"], {"a": 0}, [[5]])
    run.add("a", [1] * 6)
    with pytest.raises(EngineError, match="none was due, since its prompt is not complete .4 of 6 tokens computed"):
        run.step()
    del run.worker.execute_model


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 12), st.booleans()), min_size=1, max_size=10
    ),
    st.integers(8, 40),
    st.integers(1, 24),
    st.integers(1, 6),
)
def test_any_load_gives_every_request_its_own_tokens(requests, num_blocks, max_num_batched_tokens, max_num_seqs):
    run = Run(
        num_blocks=num_blocks,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        max_model_len=32,
    )
    prompts = {str(i): [1 + i] * length for i, (length, *_) in enumerate(requests)}
    step = 0
    while step < 13 or run.core.has_requests():
        for i, (_, max_tokens, arrival, is_aborted) in enumerate(requests):
            if arrival == step:
                run.add(str(i), prompts[str(i)], max_tokens=max_tokens)
            if is_aborted and arrival + 3 == step:
                run.core.abort_requests([str(i)])
        run.step()
        step += 1

    for name, tokens in run.tokens.items():
        assert tokens == continuation(prompts[name], len(tokens))
    for i, (length, max_tokens, _, is_aborted) in enumerate(requests):
        if not is_aborted:
            assert len(run.tokens[str(i)]) == min(max_tokens, 32 - length)
    assert run.worker.requests == {}
    run.scheduler.check_integrity()
