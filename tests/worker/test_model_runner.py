"""The worker's steps: what they return, and what is remembered between them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from support.device import DrivenWorker, driven_worker, make_dispatcher

from vllm_ext.contracts.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.scheduler_output import CachedRequestData, SchedulerOutput
from vllm_ext.errors import ConfigError, EngineError

VOCAB = 600


@pytest.fixture(scope="module")
def driver(random_llama):
    with driven_worker(random_llama, engine__block_size=4, engine__max_num_seqs=6) as driver:
        yield driver


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


def generate(driver: DrivenWorker, token_ids: list[int], num_tokens: int, params: SamplingParams) -> list[int]:
    """Tokens of a request that has the worker for itself."""
    driver.add("alone", token_ids, params)
    tokens = driver.step({"alone": len(token_ids)})["alone"]
    while len(tokens) < num_tokens:
        tokens += driver.step({"alone": 1})["alone"]
    driver.finish("alone")
    return tokens


GREEDY = SamplingParams(temperature=0.0)
SEEDED = SamplingParams(temperature=1.0, seed=3)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("chunks", [[1] * 13, [5, 8], [12, 1], [4, 4, 5]], ids=str)
def test_chunks_of_a_prompt_give_the_tokens_of_the_whole(driver, params, chunks):
    expected = generate(driver, prompt(13), 5, params)
    driver.add("r", prompt(13), params)

    tokens = [driver.step({"r": chunk})["r"] for chunk in chunks]
    assert tokens[:-1] == [[]] * (len(chunks) - 1)
    generated = tokens[-1] + [driver.step({"r": 1})["r"][0] for _ in range(4)]
    driver.finish("r")

    assert generated == expected


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_preempted_request_goes_on_where_it_was(driver, params):
    expected = generate(driver, prompt(9), 8, params)
    driver.add("r", prompt(9), params)
    before = driver.step({"r": 9})["r"] + driver.step({"r": 1})["r"] + driver.step({"r": 1})["r"]
    driver.finish("r")
    driver.step({})

    driver.add("r", prompt(9) + before, params, num_output_tokens=3)
    after = driver.step({"r": 12})["r"]
    after += [driver.step({"r": 1})["r"][0] for _ in range(4)]
    driver.finish("r")

    assert before + after == expected


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("told", ["before", "in the same step", "never"])
def test_a_resumed_request_goes_on_where_it_was(driver, params, told):
    expected = generate(driver, prompt(9), 8, params)
    driver.add("r", prompt(9), params)
    before = driver.step({"r": 9})["r"] + driver.step({"r": 1})["r"] + driver.step({"r": 1})["r"]
    driver.preempt("r", prompt(9) + before)
    batch = driver.worker.model_runner.batch
    if told == "before":
        driver.step({})
        assert "r" not in batch.slot_of
    elif told == "never":
        driver._preempted.clear()

    after = driver.step({"r": 12})["r"]
    after += [driver.step({"r": 1})["r"][0] for _ in range(4)]

    assert before + after == expected
    driver.preempt("r", prompt(9) + before + after)
    driver.finish("r")
    driver.step({})
    assert (batch.slot_of, batch._params, batch._num_prompt_tokens_of_preempted) == ({}, {}, {})


def test_a_prompt_that_is_resumed_halfway_is_scored_from_its_beginning(driver):
    params = SamplingParams(temperature=0, prompt_logprobs=2)
    scored, execute = [], driver.worker.sample_tokens

    def sample_tokens(grammar_output: None) -> ModelRunnerOutput:
        output = execute(grammar_output)
        scored.extend(output.prompt_logprobs_dict.values())
        return output

    driver.worker.sample_tokens = sample_tokens
    try:
        for is_preempted in (False, True):
            driver.add("r", prompt(9), params)
            driver.step({"r": 4})
            if is_preempted:
                driver.preempt("r", prompt(9))
                driver.step({"r": 2})
            driver.step({"r": 9 - driver.computed["r"]})
            driver.finish("r")
            driver.step({})
    finally:
        del driver.worker.sample_tokens

    straight, resumed = scored
    assert straight.logprob_token_ids.shape == (8, 3)
    assert straight.logprob_token_ids.tolist() == resumed.logprob_token_ids.tolist()
    np.testing.assert_allclose(straight.logprobs, resumed.logprobs, atol=1e-5)


def test_requests_that_come_and_go_keep_their_own_tokens(driver):
    """Random arrivals, chunks, pauses and ends; every request gets what it gets alone."""
    rng = random.Random(1)
    prompts = {f"r{i}": prompt(rng.randint(1, 20), seed=i) for i in range(14)}
    params = {name: GREEDY if rng.random() < 0.5 else SEEDED for name in prompts}
    lengths = {name: rng.randint(1, 9) for name in prompts}
    expected = {name: generate(driver, prompts[name], lengths[name], params[name]) for name in prompts}
    waiting, running = list(prompts), []
    generated: dict[str, list[int]] = {name: [] for name in prompts}
    sizes = set()
    while waiting or running:
        while waiting and len(running) < 6 and rng.random() < 0.6:
            name = waiting.pop(0)
            running.append(name)
            driver.add(name, prompts[name], params[name])
        step = {}
        for name in rng.sample(running, len(running)):
            left = len(prompts[name]) + len(generated[name]) - driver.computed[name]
            if rng.random() < 0.8:
                step[name] = rng.randint(1, left)
        for name, tokens in driver.step(step).items():
            generated[name] += tokens
        sizes.add(len(step))
        for name in [name for name in running if len(generated[name]) == lengths[name]]:
            running.remove(name)
            driver.finish(name)

    assert generated == expected
    assert {2, 3} <= sizes


def test_a_step_without_tokens_drops_who_is_finished(driver):
    driver.add("r", prompt(3))
    driver.step({"r": 3})
    driver.finish("r")

    output = driver.execute(SchedulerOutput([], CachedRequestData(), {}, 0, {"r"}))

    assert output is EMPTY_MODEL_RUNNER_OUTPUT
    assert "r" not in driver.worker.model_runner.batch.slot_of


def test_a_step_has_two_phases(driver):
    driver.add("r", prompt(3))
    new = driver._new.pop()
    new.block_ids = ([1],)
    output = SchedulerOutput([new], CachedRequestData(), {"r": 3}, 3)
    with driver.dispatcher.activate():
        assert driver.worker.execute_model(output) is None
        result = driver.worker.sample_tokens(None)
    driver.execute(SchedulerOutput([], CachedRequestData(), {}, 0, {"r"}))

    assert result.req_ids == ["r"]
    assert result.req_id_to_index == {"r": 0}
    assert len(result.sampled_token_ids[0]) == 1


def test_the_second_phase_alone_is_an_error(driver):
    with pytest.raises(EngineError, match=r"sample_tokens\(\) was called without"):
        driver.worker.sample_tokens(None)


def test_more_requests_than_max_num_seqs_are_an_error(random_llama):
    with driven_worker(random_llama, engine__max_num_seqs=1) as driver:
        driver.add("a", prompt(2))
        driver.add("b", prompt(2))

        with pytest.raises(EngineError, match="request 'b' comes on top of 1"):
            driver.step({"a": 2, "b": 2})


# More bytes than there are addresses, whatever the system promises; and more than numpy can count.
@pytest.mark.parametrize("zeros", [15, 30])
def test_more_requests_than_memory_can_hold_are_refused_with_the_settings(random_llama, zeros):
    with pytest.raises(ConfigError, match=rf"engine.max_num_seqs is 10{{{zeros}}}, .* lower$") as caught:
        driven_worker(random_llama, engine__max_num_seqs=10**zeros).__enter__()

    assert "engine.max_model_len" in str(caught.value)


def test_logits_are_computed_only_for_requests_that_get_a_token(driver):
    driver.add("a", prompt(5))
    driver.add("b", prompt(8))

    driver.step({"a": 5, "b": 4})
    rows = driver.logits.shape[0]
    for name in "ab":
        driver.finish(name)

    assert rows == 1


def test_a_request_can_fill_the_model_to_its_last_position(random_llama):
    with driven_worker(random_llama, engine__max_model_len=12, engine__block_size=5) as driver:
        tokens = generate(driver, prompt(11), 2, GREEDY)

        assert generate(driver, prompt(11) + tokens[:1], 1, GREEDY) == tokens[1:]


def test_warming_up_leaves_no_request_and_no_random_numbers_drawn(random_llama):
    drawn = []
    for warm_ups in (0, 3):
        with driven_worker(random_llama, engine__seed=4) as driver, driver.dispatcher.activate():
            for _ in range(warm_ups):
                driver.worker.compile_or_warm_up_model()
            assert not driver.worker.model_runner.batch.slot_of
            drawn.append(generate(driver, prompt(4), 6, SamplingParams(temperature=1.0)))

    assert drawn[0] == drawn[1]


def test_a_cache_too_small_for_warming_up_is_no_error(random_llama):
    driver = DrivenWorker(make_dispatcher(random_llama, engine__block_size=4), num_blocks=2)

    assert generate(driver, prompt(6), 2, GREEDY)
    driver.worker.shutdown()


def test_a_worker_that_is_shut_down_leaves_nothing_behind(random_llama):
    dispatcher = make_dispatcher(random_llama)
    driver = DrivenWorker(dispatcher)
    driver.worker.shutdown()
    driver.worker.shutdown()

    again = DrivenWorker(dispatcher)
    tokens = generate(again, prompt(4), 2, GREEDY)
    again.worker.shutdown()

    assert len(tokens) == 2
    assert all(0 <= token < VOCAB for token in tokens)


def test_half_precision_generates_too(random_llama):
    with driven_worker(random_llama, engine__dtype="float16") as driver:
        tokens = generate(driver, prompt(7), 4, SEEDED)

    assert len(tokens) == 4
    assert driver.logits.dtype is torch.float16


class TestTheLastLayer:
    """Only tokens that are followed by a new one go through its feed-forward part."""

    def rows_of_last_norm(self, driver: DrivenWorker, monkeypatch) -> list[int]:
        norm, seen = driver.worker.get_model().model.norm, []
        forward = norm.forward
        monkeypatch.setitem(norm.__dict__, "forward", lambda x, *rest: (seen.append(len(x)), forward(x, *rest))[1])
        return seen

    def test_it_computes_one_token_of_each_prompt(self, driver, monkeypatch):
        seen = self.rows_of_last_norm(driver, monkeypatch)
        for name, length in (("a", 9), ("b", 4)):
            driver.add(name, prompt(length))
        driver.step({"a": 9, "b": 4})
        driver.finish("a")
        driver.finish("b")

        assert seen == [2]

    def test_it_computes_one_token_of_a_chunk_that_is_not_the_last(self, driver, monkeypatch):
        seen = self.rows_of_last_norm(driver, monkeypatch)
        driver.add("a", prompt(9))
        driver.step({"a": 5})
        driver.finish("a")

        assert seen == [1]

    def test_it_computes_all_tokens_where_their_log_probabilities_are_asked_for(self, driver, monkeypatch):
        seen = self.rows_of_last_norm(driver, monkeypatch)
        driver.add("a", prompt(9), SamplingParams(temperature=0.0, prompt_logprobs=1))
        driver.step({"a": 9})
        driver.finish("a")

        assert seen == [9]

    @pytest.mark.parametrize("other", [1, 4])
    def test_the_logits_are_those_of_all_tokens_computed(self, driver, other):
        for name in ("a", "b"):
            driver.add(name, prompt(9, seed=ord(name)))
        driver.step({"a": 9, "b": other})
        logits = driver.logits
        driver.finish("a")
        driver.finish("b")
        driver.add("a", prompt(9, seed=ord("a")), SamplingParams(temperature=0.0, prompt_logprobs=1))
        driver.step({"a": 9})
        driver.finish("a")
        driver.step({})

        torch.testing.assert_close(logits[:1], driver.logits[-1:])
