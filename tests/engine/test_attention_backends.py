"""An engine gives the same tokens whichever attention backend computes them."""

from __future__ import annotations

import pytest
import torch
from support.device import driven_worker
from support.reference import assert_equal_tokens, greedy_reference

from vllm_ext import LLM, SamplingParams, _custom_ops

NUM_TOKENS = 8
PROMPTS = [[5, 17, 300, 4], [9], [250, 8, 8, 41, 7, 7, 90, 120, 33, 2, 64, 65, 66, 67, 68, 69, 70, 71, 72]]
needs_kernels = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))


@pytest.mark.parametrize("name", [pytest.param("CPU_ATTN", marks=needs_kernels), "SDPA", "REFERENCE"])
def test_the_tokens_are_those_of_transformers(random_llama, name):
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)

    # Prompts in chunks, so that there are steps of every kind.
    settings = {"block_size": 4, "max_num_batched_tokens": 7, "overrides": {"attention.backend": name}}
    with LLM(random_llama, platform="cpu", **settings) as llm:
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params)
        (choice,) = llm.dispatcher.attention_choices.values()

    assert choice.backend.get_name() == name
    references = greedy_reference(random_llama, PROMPTS, NUM_TOKENS)
    assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("beside", [{}, {"decoding": 1}, {"prompt": 3}], ids=["alone", "decoding", "prompt"])
def test_a_prompts_last_token_in_a_chunk_of_its_own_gives_the_very_bits_of_the_whole(random_llama, dtype, beside):
    """Seeded requests are the same however their prompts are cut, and whatever of them is cached."""
    prompt = [(7 * i) % 500 for i in range(49)]
    with driven_worker(random_llama, attention__backend="CPU_ATTN", engine__dtype=dtype) as driver:
        driver.add("whole", prompt)
        driver.step({"whole": 49})
        whole = driver.logits[0].clone()
        driver.add("cut", prompt)
        driver.step({"cut": 48})
        for other in beside:
            driver.add(other, [3, 1, 4])
        if "decoding" in beside:
            driver.step({"decoding": 3})
        driver.step({"cut": 1} | beside)

    assert torch.equal(driver.logits[0], whole)


@needs_kernels
def test_a_static_graph_is_not_replayed_for_the_end_of_a_prompt(random_llama):
    """Its calls are those of requests that decode."""
    prompt = [(7 * i) % 500 for i in range(49)]
    with driven_worker(random_llama, attention__backend="CPU_ATTN") as driver:
        driver.add("first", prompt)
        driver.step({"first": 49})
        whole = driver.logits[0].clone()
        for _ in range(3):
            driver.step({"first": 1})
        driver.add("cut", prompt)
        driver.step({"cut": 48})
        driver.step({"cut": 1})

    assert torch.equal(driver.logits[0], whole)
