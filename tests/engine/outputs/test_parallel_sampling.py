"""``n`` completions of one prompt come back as one output."""

from __future__ import annotations

import pytest

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm import LLM
from vllm_ext.engine.llm_engine import LLMEngine
from vllm_ext.errors import InvalidRequest

PROMPTS = [[5, 6, 7], [8, 9, 10, 11]]


@pytest.fixture
def llm(make_cpu_llm, random_llama) -> LLM:
    return make_cpu_llm(random_llama, max_num_seqs=8)


@pytest.fixture
def engine(llm) -> LLMEngine:
    return llm.llm_engine


def sampled(n: int, **values) -> SamplingParams:
    return SamplingParams(**({"n": n, "seed": 40, "max_tokens": 8, "ignore_eos": True} | values))


def run(engine: LLMEngine) -> list:
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs


def test_generate_gives_one_output_with_n_completions(llm):
    first, second = llm.generate(PROMPTS, [sampled(3), sampled(1)])

    assert [completion.index for completion in first.outputs] == [0, 1, 2]
    assert (first.request_id, first.prompt_token_ids, first.finished) == ("0", PROMPTS[0], True)
    assert [len(completion.token_ids) for completion in first.outputs] == [8, 8, 8]
    assert len({tuple(completion.token_ids) for completion in first.outputs}) == 3
    assert len(second.outputs) == 1


def test_the_seed_of_a_completion_is_the_seed_and_its_index(llm):
    (output,) = llm.generate([PROMPTS[0]], sampled(3))
    alone = llm.generate([PROMPTS[0]] * 3, [sampled(1, seed=40 + i) for i in range(3)])

    assert [c.token_ids for c in output.outputs] == [o.outputs[0].token_ids for o in alone]


def test_seeds_go_round_at_the_end_of_their_range(llm):
    (output,) = llm.generate([PROMPTS[0]], sampled(3, seed=-2))
    alone = llm.generate([PROMPTS[0]] * 3, [sampled(1, seed=seed) for seed in (-2, 2**64 - 1, 0)])

    assert [c.token_ids for c in output.outputs] == [o.outputs[0].token_ids for o in alone]


def test_more_completions_than_the_engine_runs_at_a_time(make_cpu_llm, random_llama):
    llm = make_cpu_llm(random_llama, max_num_seqs=2)

    (output,) = llm.generate([PROMPTS[0]], sampled(5))

    assert [len(completion.token_ids) for completion in output.outputs] == [8] * 5


def test_a_stream_has_all_completions_in_every_state(llm):
    states = list(llm.stream([PROMPTS[0]], sampled(3, stop_token_ids=list(range(0, 600, 5)))))

    assert all([completion.index for completion in state.outputs] == [0, 1, 2] for state in states)
    assert [state.finished for state in states] == [False] * (len(states) - 1) + [True]
    assert all(completion.finished for completion in states[-1].outputs)
    lengths = [[len(completion.token_ids) for completion in state.outputs] for state in states]
    assert lengths == [[min(step, last) for last in lengths[-1]] for step in range(1, len(states) + 1)]


def test_log_probabilities_belong_to_their_completion(llm):
    (output,) = llm.generate([PROMPTS[1]], sampled(2, logprobs=1, prompt_logprobs=1))

    for completion in output.outputs:
        assert [next(iter(position)) for position in completion.logprobs] == completion.token_ids
    assert [position and len(position) >= 1 for position in output.prompt_logprobs] == [None, True, True, True]


@pytest.mark.parametrize("final_only", [False, True])
def test_the_engine_gives_the_output_under_its_own_id(engine, final_only):
    engine.add_request("a", PROMPTS[0], sampled(2), final_only=final_only)

    outputs = run(engine)

    assert {output.request_id for output in outputs} == {"a"}
    assert len(outputs) == (1 if final_only else 8)
    assert [completion.index for completion in outputs[-1].outputs] == [0, 1]


def test_aborting_ends_all_completions_with_one_output(engine):
    engine.add_request("a", PROMPTS[0], sampled(3), final_only=True)
    engine.add_request("b", PROMPTS[1], sampled(1), final_only=True)
    engine.step()
    engine.abort_request("a")

    first, second = run(engine)

    assert (first.request_id, first.finished) == ("a", True)
    assert [(c.finish_reason, len(c.token_ids)) for c in first.outputs] == [("abort", 1)] * 3
    assert (second.request_id, second.outputs[0].finish_reason) == ("b", "length")


@pytest.mark.parametrize("taken", ["a", "1_a"])
def test_ids_in_use_are_refused_and_change_nothing(engine, taken):
    engine.add_request(taken, PROMPTS[0], sampled(1), final_only=True)

    with pytest.raises(InvalidRequest, match=f"a request with the id '{taken}' is in flight"):
        engine.add_request("a", PROMPTS[0], sampled(3))
    assert [output.request_id for output in run(engine)] == [taken]


@pytest.mark.parametrize("again", [1, 2])
def test_an_id_with_completions_in_flight_is_refused(engine, again):
    engine.add_request("a", PROMPTS[0], sampled(3), final_only=True)

    with pytest.raises(InvalidRequest, match="a request with the id 'a' is in flight"):
        engine.add_request("a", PROMPTS[0], sampled(again))
    assert len(run(engine)) == 1
    engine.add_request("a", PROMPTS[0], sampled(again))
    run(engine)


def test_an_abort_does_not_reach_a_request_that_has_the_id_of_a_completion_that_ended(llm, engine):
    (output,) = llm.generate([PROMPTS[0]], sampled(2))
    (first, second) = (completion.token_ids for completion in output.outputs)
    (stop,) = [token for token in first if token not in second][:1]
    engine.add_request("x", PROMPTS[0], sampled(2, max_tokens=100, stop_token_ids=[stop]))
    while engine.output_processor.is_in_flight("0_x"):
        engine.step()
    engine.add_request("0_x", PROMPTS[1], sampled(1))

    engine.abort_request("x")

    reasons = {output.request_id: output.outputs[-1].finish_reason for output in run(engine) if output.finished}
    assert reasons == {"x": "abort", "0_x": "length"}
