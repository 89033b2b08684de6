"""An engine gives the same tokens whichever attention backend computes them."""

from __future__ import annotations

import pytest
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
