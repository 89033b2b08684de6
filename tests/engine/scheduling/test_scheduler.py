"""The scheduler, seen through an engine core on a worker that keeps the books of its KV cache.

Every test here also tests the slots: the fake worker refuses a step that computes a token anywhere else than in the
blocks of its request, or that finds an earlier token overwritten.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.core_run import Run, engine
from support.fake_engine import continuation

from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.engine.scheduling.request import RequestStatus
from vllm_ext.errors import EngineError, InvalidRequest


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
    assert any("last" in step.preempted and "first" in step.num_scheduled_tokens for step in run.worker.steps)
    assert [step.resumed for step in run.worker.steps if step.new] == [set(), {"last"}]
    assert not any("last" in step.finished for step in run.worker.steps[:-1])


@engine(num_blocks=5, max_num_seqs=2)
def test_a_preempted_request_runs_before_those_that_wait(run):
    for name in ("a", "b", "c"):
        run.add(name, [1] * 8, max_tokens=12)
    while not run.scheduler.num_preemptions:
        run.step()

    assert [request.request_id for request in run.scheduler.waiting] == ["b", "c"]


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


def test_what_a_worker_fills_after_it_was_given_to_an_output_is_in_it():
    logprobs, pooled = {}, []
    output = ModelRunnerOutput(["a"], {"a": 0}, [[5]], logprobs=logprobs, pooler_output=pooled)

    assert output.logprobs is logprobs
    assert output.pooler_output is pooled


def test_a_worker_may_leave_out_what_nobody_asked_for_by_vllms_none(run):
    run.worker.execute_model = lambda _: ModelRunnerOutput(["a"], {"a": 0}, [[5]], logprobs=None, pooler_output=None)
    run.add("a", [1], max_tokens=1)

    (output,) = run.step()

    assert (output.new_token_ids, output.new_logprobs, output.new_prompt_logprobs) == ([5], None, None)
    del run.worker.execute_model


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


@settings(max_examples=60)
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
