"""A seeded request gives the same tokens whatever it is batched with, in chunks and after preemptions."""

from __future__ import annotations

import random

import pytest

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm import LLM

VOCAB = 600
NUM_TOKENS = 30
BLOCK = 16
BYTES_PER_BLOCK = 3 * 2 * BLOCK * 2 * 16 * 4
"""Layers, key and value, tokens, heads, head size, float32."""


def prompt(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1, VOCAB), k=length)


SEEDED = [
    (prompt(length, seed), SamplingParams(seed=seed, max_tokens=NUM_TOKENS, ignore_eos=True, **values))
    for seed, (length, values) in enumerate(
        [
            (13, {}),
            (25, {"top_p": 0.9, "temperature": 0.8}),
            (40, {"top_k": 20, "repetition_penalty": 1.3}),
            (3, {"min_p": 0.02, "presence_penalty": 0.7, "frequency_penalty": 0.4}),
            (31, {"min_tokens": 9, "logit_bias": {5: 3.0, 0: 4.0}, "bad_words": ["the", "qu"]}),
            (18, {"allowed_token_ids": list(range(100, 400))}),
            (22, {"logprobs": 3, "prompt_logprobs": 2}),
            (9, {"temperature": 1.3}),
        ]
    )
]


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def generate(llm: LLM, pairs: list[tuple[list[int], SamplingParams]]) -> list[RequestOutput]:
    return llm.generate([ids for ids, _ in pairs], [params for _, params in pairs])


@pytest.fixture
def alone(make_cpu_llm, random_llama) -> list[list[int]]:
    """The tokens of each request when it has the engine for itself."""
    llm = make_cpu_llm(random_llama, max_num_seqs=1)
    return tokens_of([generate(llm, [pair])[0] for pair in SEEDED])


def test_different_seeds_give_different_tokens(make_cpu_llm, random_llama):
    params = [SamplingParams(seed=seed, max_tokens=8) for seed in range(20)]

    outputs = make_cpu_llm(random_llama).generate([prompt(5, 0)] * 20, params)

    assert len({tuple(ids) for ids in tokens_of(outputs)}) == 20


def test_together_with_others(make_cpu_llm, random_llama, alone):
    llm = make_cpu_llm(random_llama, max_num_seqs=16)
    unseeded = [(prompt(10 + i, 50 + i), SamplingParams(max_tokens=7 + i)) for i in range(4)]
    greedy = [(prompt(20, 60), SamplingParams(temperature=0, max_tokens=20))]

    outputs = generate(llm, [*unseeded, *SEEDED, *greedy])

    assert tokens_of(outputs)[4:12] == alone


def test_in_chunks(make_cpu_llm, random_llama, alone):
    llm = make_cpu_llm(random_llama, max_num_batched_tokens=11, max_num_seqs=8)
    core, in_chunks = llm.llm_engine.engine_core, set()
    schedule = core.scheduler.schedule

    def watched():
        output = schedule()
        for name, count in output.num_scheduled_tokens.items():
            if count > 1 and core.scheduler.requests[name].num_computed_tokens < len(SEEDED[int(name)][0]):
                in_chunks.add(name)
        return output

    core.scheduler.schedule = watched
    outputs = generate(llm, SEEDED)

    assert len(in_chunks) >= 4
    assert tokens_of(outputs) == alone


def test_after_preemptions(make_cpu_llm, random_llama, alone):
    llm = make_cpu_llm(random_llama, max_num_seqs=8, kv_cache_memory=14 * BYTES_PER_BLOCK)
    outputs = generate(llm, SEEDED)

    scheduler = llm.llm_engine.engine_core.scheduler
    assert scheduler.kv_cache_manager.block_pool.num_blocks == 14
    assert scheduler.num_preemptions > 0
    assert tokens_of(outputs) == alone
    with_logprobs = outputs[6]
    assert len(with_logprobs.outputs[0].logprobs) == NUM_TOKENS
    assert len(with_logprobs.prompt_logprobs) == len(SEEDED[6][0])
