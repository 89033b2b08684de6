"""Log probabilities are those that transformers' logits give, for output and prompt, in vLLM's shapes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from support.reference import reference_logits

from vllm_ext.contracts.outputs import Logprob, LogprobsLists, RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm import LLM

VOCAB = 600
PROMPTS = [random.Random(i).choices(range(1, VOCAB), k=length) for i, length in enumerate((7, 29, 1, 16))]
TOLERANCE = 1e-4
MIXED = [
    SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
    for logprobs, prompt_logprobs in ((3, 2), (None, None), (0, None), (7, 0))
]


@pytest.fixture
def llm(make_cpu_llm, random_llama) -> LLM:
    return make_cpu_llm(random_llama, max_num_seqs=8)


def assert_position(ours: dict[int, Logprob], logits: torch.Tensor, token: int, num_logprobs: int) -> None:
    """``ours`` has ``token`` first and the likeliest, with the values and ranks of log_softmax of ``logits``."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(num_logprobs).indices.tolist()
    assert next(iter(ours)) == token
    assert set(ours) == {token, *best}
    for token_id, entry in ours.items():
        assert entry.logprob == pytest.approx(float(logprobs[token_id]), abs=TOLERANCE)
        assert entry.rank == int((logprobs >= logprobs[token_id]).sum())


def assert_output(output: RequestOutput, model, num_logprobs: int) -> None:
    completion = output.outputs[0]
    logits = reference_logits(model, output.prompt_token_ids + completion.token_ids)
    start = len(output.prompt_token_ids) - 1
    for i, (token, position) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        assert_position(position, logits[start + i], token, num_logprobs)
    total = math.fsum(next(iter(position.values())).logprob for position in completion.logprobs)
    assert completion.cumulative_logprob == pytest.approx(total, abs=1e-4)


def assert_prompt(output: RequestOutput, model, num_logprobs: int) -> None:
    prompt = output.prompt_token_ids
    logits = reference_logits(model, prompt)
    first, *others = output.prompt_logprobs
    assert first is None
    for i, (token, position) in enumerate(zip(prompt[1:], others, strict=True)):
        assert_position(position, logits[i], token, num_logprobs)


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("num_logprobs", [0, 1, 5])
def test_of_generated_tokens(llm, random_llama, temperature, num_logprobs):
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=10, ignore_eos=True, logprobs=num_logprobs)

    for output in llm.generate(list(PROMPTS), params):
        assert_output(output, random_llama, num_logprobs)
        assert output.prompt_logprobs is None


def test_they_are_the_models_own_whatever_else_is_asked_for(llm, random_llama):
    params = SamplingParams(
        temperature=0.5,
        top_k=3,
        logit_bias={4: 9.0},
        repetition_penalty=2.0,
        min_p=0.1,
        seed=2,
        max_tokens=10,
        ignore_eos=True,
        logprobs=4,
    )

    for output in llm.generate(list(PROMPTS), params):
        assert_output(output, random_llama, 4)


def test_minus_1_is_the_whole_vocabulary(llm, random_llama):
    (output,) = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=2, logprobs=-1, prompt_logprobs=-1))

    assert [len(position) for position in output.outputs[0].logprobs] == [VOCAB, VOCAB]
    assert_output(output, random_llama, VOCAB)
    assert_prompt(output, random_llama, VOCAB)


def test_each_request_of_a_batch_gets_as_many_as_it_asked_for(llm, random_llama):
    counts = [2, None, 0, 7]
    params = [SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=count) for count in counts]

    outputs = llm.generate(list(PROMPTS), params)

    assert outputs[1].outputs[0].logprobs is None
    assert outputs[1].outputs[0].cumulative_logprob is None
    for output, count in zip(outputs, counts, strict=True):
        if count is not None:
            assert_output(output, random_llama, count)


# With 28 and 14 a chunk ends right before the last token of a prompt.
@pytest.mark.parametrize(("budget", "num_steps"), [(None, 1), (8, 4), (28, 2), (14, 3)], ids=str)
@pytest.mark.parametrize("num_logprobs", [0, 3])
def test_of_prompts(make_cpu_llm, random_llama, budget, num_steps, num_logprobs):
    settings = {} if budget is None else {"max_num_batched_tokens": budget}
    llm = make_cpu_llm(random_llama, max_num_seqs=8, **settings)
    steps = []
    execute = llm.llm_engine.engine_core.executor.execute_model
    llm.llm_engine.engine_core.executor.execute_model = lambda output: steps.append(output) or execute(output)

    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=num_logprobs)
    outputs = llm.generate([PROMPTS[1]], params) + llm.generate(list(PROMPTS), params)

    assert len([step for step in steps if "0" in step.num_scheduled_tokens]) == num_steps + 2
    for output in outputs:
        assert_prompt(output, random_llama, num_logprobs)
        assert output.outputs[0].logprobs is None


def test_a_prompt_longer_than_the_rows_scored_at_a_time(make_cpu_llm, random_llama):
    prompt = random.Random(9).choices(range(1, VOCAB), k=200)

    (output,) = make_cpu_llm(random_llama).generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=1))

    assert_prompt(output, random_llama, 1)


def test_a_prompt_that_is_preempted_midway_is_scored_once(make_cpu_llm, random_llama):
    bytes_per_block = 3 * 2 * 16 * 2 * 16 * 4
    llm = make_cpu_llm(
        random_llama, max_num_seqs=4, kv_cache_memory=9 * bytes_per_block, max_num_batched_tokens=12, max_model_len=140
    )
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, prompt_logprobs=1, logprobs=1)
    prompts = [random.Random(i).choices(range(1, VOCAB), k=30) for i in range(4)]

    outputs = llm.generate(prompts, params)

    assert llm.llm_engine.engine_core.scheduler.num_preemptions > 0
    for output in outputs:
        assert_prompt(output, random_llama, 1)
        assert_output(output, random_llama, 1)


def test_decoded_tokens_make_up_the_text(make_cpu_llm):
    llm = make_cpu_llm(None)

    (output,) = llm.generate("It was a truth", SamplingParams(temperature=0, max_tokens=20, logprobs=1))

    completion = output.outputs[0]
    chosen = zip(completion.token_ids, completion.logprobs, strict=True)
    assert "".join(position[token].decoded_token for token, position in chosen) == completion.text


def test_a_stream_brings_them_as_they_come(llm):
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=1, prompt_logprobs=1)

    states = list(llm.stream([PROMPTS[0]], params))

    assert [len(state.outputs[0].logprobs) for state in states] == [1, 2, 3, 4, 5]
    assert {len(state.prompt_logprobs) for state in states} == {len(PROMPTS[0])}


class TestOfAVendorsWorker:
    """One that gives what vLLM's model runners give, in this process and in another."""

    def of(self, llm: LLM) -> list[tuple[object, ...]]:
        outputs = llm.generate(PROMPTS, MIXED)
        return [(output.outputs[0].token_ids, output.outputs[0].logprobs, output.prompt_logprobs) for output in outputs]

    def test_each_request_gets_what_it_asked_for(self, make_cpu_llm, random_llama):
        expected = self.of(make_cpu_llm(random_llama, max_num_batched_tokens=16))
        vendors = {"worker.cls": "support.vendors_workers.VendorsOutput"}

        assert self.of(make_cpu_llm(random_llama, max_num_batched_tokens=16, overrides=vendors)) == expected

    def test_also_from_another_process(self, make_cpu_llm, random_llama):
        expected = self.of(make_cpu_llm(random_llama))
        vendors = {"worker.cls": "support.vendors_workers.VendorsOutput"}

        assert self.of(make_cpu_llm(random_llama, executor="multiproc", overrides=vendors)) == expected


def test_rows_of_a_request_that_got_several_tokens_begin_where_the_worker_says():
    rows = np.arange(8).reshape(4, 2)
    lists = LogprobsLists(rows, rows * -1.0, np.arange(1, 5), [0, 1, 3])

    assert lists.slice_request(1, 2).logprob_token_ids.tolist() == [[2, 3], [4, 5]]
    assert lists._replace(cu_num_generated_tokens=None).slice_request(2, 1).sampled_token_ranks.tolist() == [3]
