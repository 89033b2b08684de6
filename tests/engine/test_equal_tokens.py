"""The engine and the real CPU worker give the tokens that transformers gives: greedy, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.reference import assert_equal_tokens, greedy_reference
from support.vocabularies import byte_level_tokenizer, write_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.dispatch.hf_config import DEMO_MODEL
from vllm_ext.engine.llm import LLM

VOCAB_SIZE = 420
SHAPES = {
    "all heads, untied": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "grouped heads, tied": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "one kv head": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "wide heads": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 48},
}
PROMPT_LENGTHS = (1, 2, 5, 8, 13, 16, 17, 23, 31, 32, 33, 40, 3, 64, 7, 1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model directory for an entry of ``SHAPES``: random weights, so large that logits lie well apart."""
    written: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in written:
            torch.manual_seed(list(SHAPES).index(name))
            config = LlamaConfig(
                **{"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
                | {"max_position_embeddings": 256, "initializer_range": 0.3, "eos_token_id": 0, "bos_token_id": 0}
                | SHAPES[name]
            )
            directory = write_tokenizer(tmp_path_factory.mktemp("checkpoint"), byte_level_tokenizer(VOCAB_SIZE))
            LlamaForCausalLM(config).save_pretrained(directory)
            written[name] = directory
        return written[name]

    return write


def make_prompts(num_prompts: int, vocab_size: int = VOCAB_SIZE) -> list[list[int]]:
    generator = torch.Generator().manual_seed(num_prompts)
    return [
        torch.randint(1, vocab_size, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS[:num_prompts]
    ]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def generated(llm: LLM, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, greedy(max_tokens))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_prompts", [1, 16])
def test_tokens_equal_those_of_transformers(checkpoint, make_cpu_llm, shape, num_prompts):
    model, prompts = checkpoint(shape), make_prompts(num_prompts)

    token_ids = generated(make_cpu_llm(model), prompts, 12)

    assert_equal_tokens(token_ids, greedy_reference(model, prompts, 12))


@pytest.mark.parametrize("num_prompts", [2, 5, 11])
def test_tokens_do_not_depend_on_the_size_of_the_batch(checkpoint, make_cpu_llm, num_prompts):
    model, prompts = checkpoint("grouped heads, tied"), make_prompts(num_prompts)

    token_ids = generated(make_cpu_llm(model), prompts, 20)

    assert_equal_tokens(token_ids, greedy_reference(model, prompts, 20))


def test_requests_that_join_and_leave_at_different_steps_get_the_same_tokens(checkpoint, make_cpu_llm):
    model, prompts = checkpoint("grouped heads, tied"), make_prompts(8)
    max_tokens = [30, 4, 9, 17, 2, 25, 6, 12]
    engine = make_cpu_llm(model).llm_engine
    ended: dict[str, list[int]] = {}
    step = 0
    while len(ended) < len(prompts):
        if step % 2 == 0 and step // 2 < len(prompts):
            i = step // 2
            engine.add_request(str(i), prompts[i], greedy(max_tokens[i]), final_only=True)
        ended |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
        step += 1

    order = list(ended)
    assert order.index("1") < order.index("0"), "a short request ends before an earlier long one"
    references = [greedy_reference(model, [prompt], n)[0] for prompt, n in zip(prompts, max_tokens, strict=True)]
    assert_equal_tokens([ended[str(i)] for i in range(len(prompts))], references)


def test_chunks_and_preemptions_do_not_change_the_tokens(checkpoint, make_cpu_llm):
    model, prompts = checkpoint("one kv head"), make_prompts(12)
    bytes_per_block = 2 * 2 * 16 * 1 * 16 * 4  # layers, key and value, tokens, heads, head size, float32
    llm = make_cpu_llm(model, max_num_batched_tokens=11, kv_cache_memory=9 * bytes_per_block)

    token_ids = generated(llm, prompts, 30)

    scheduler = llm.llm_engine.engine_core.scheduler
    assert scheduler.kv_cache_manager.block_pool.num_blocks == 9
    assert scheduler.num_preemptions > 0
    assert_equal_tokens(token_ids, greedy_reference(model, prompts, 30))


def test_two_engines_in_a_process_do_not_disturb_each_other(checkpoint, make_cpu_llm):
    models = [checkpoint("one kv head"), checkpoint("wide heads")]
    (prompt,) = make_prompts(1)
    streams = [make_cpu_llm(model).stream([prompt], greedy(12)) for model in models]
    *_, last = zip(*streams, strict=True)

    for model, output in zip(models, last, strict=True):
        assert_equal_tokens([output.outputs[0].token_ids], greedy_reference(model, [prompt], 12))


def test_without_a_model_the_demo_model_gives_the_tokens_of_transformers(make_cpu_llm):
    llm = make_cpu_llm(None)
    texts = ["It was a truth", "Emma looked at her father, and", "The letter had been lying on the table when"]
    outputs = llm.generate(texts, greedy(40))

    prompts = [output.prompt_token_ids for output in outputs]
    references = greedy_reference(DEMO_MODEL, prompts, 40)
    assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)
    for output in outputs:
        whole = llm.llm_engine.tokenizer.decode(output.prompt_token_ids + output.outputs[0].token_ids)
        assert whole == output.prompt + output.outputs[0].text
