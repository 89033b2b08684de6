"""The engine and the real CPU worker give the tokens that transformers gives: greedy, in float32."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.reference import assert_equal_tokens, greedy_reference
from support.vocabularies import byte_level_tokenizer, write_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_ext.contracts.outputs import CompletionOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.dispatch.hf_config import DEMO_MODEL
from vllm_ext.engine.async_llm import AsyncLLM
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


class Watch:
    """What happened in an engine while it served requests."""

    def __init__(self, llm: LLM) -> None:
        self.scheduler = llm.llm_engine.engine_core.scheduler
        self.steps: list[SchedulerOutput] = []
        schedule = self.scheduler.schedule

        def watched() -> SchedulerOutput:
            self.steps.append(schedule())
            return self.steps[-1]

        self.scheduler.schedule = watched

    @property
    def admissions(self) -> Iterator[tuple[int, int, int]]:
        """Tokens of each request that was admitted, also again, those of them in the cache, and those computed then."""
        for step in self.steps:
            for new in step.scheduled_new_reqs:
                yield len(new.prompt_token_ids), new.num_computed_tokens, step.num_scheduled_tokens[new.req_id]
            cached = step.scheduled_cached_reqs
            for req_id, num_computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
                if req_id in cached.resumed_req_ids:
                    yield len(cached.all_token_ids[req_id]), num_computed, step.num_scheduled_tokens[req_id]

    @property
    def num_chunked(self) -> int:
        """Admissions of requests whose tokens were not all computed in the step of their admission."""
        return sum(num_computed + num_now < num_tokens for num_tokens, num_computed, num_now in self.admissions)

    @property
    def num_cached(self) -> int:
        """Tokens that were found in the cache, at all admissions."""
        return sum(num_computed for _, num_computed, _ in self.admissions)


def blocks_of_memory(num_blocks: int) -> int:
    """Bytes for so many blocks of "one kv head": layers, key and value, tokens, heads, head size, float32."""
    return num_blocks * 2 * 2 * 16 * 1 * 16 * 4


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_chunks_and_preemptions_do_not_change_the_tokens(checkpoint, make_cpu_llm, enable_prefix_caching):
    model, prompts = checkpoint("one kv head"), make_prompts(12)
    llm = make_cpu_llm(
        model,
        max_num_batched_tokens=11,
        kv_cache_memory=blocks_of_memory(9),
        enable_prefix_caching=enable_prefix_caching,
    )
    watch = Watch(llm)

    token_ids = generated(llm, prompts, 30)

    assert watch.scheduler.kv_cache_manager.block_pool.num_blocks == 9
    assert watch.scheduler.num_preemptions > 0
    assert watch.num_chunked > 0
    assert (watch.num_cached > 0) == enable_prefix_caching, "what a preempted request had computed was found again"
    assert_equal_tokens(token_ids, greedy_reference(model, prompts, 30))


@pytest.mark.parametrize("max_num_batched_tokens", [2048, 13])
def test_prompts_that_begin_alike_get_the_same_tokens(checkpoint, make_cpu_llm, max_num_batched_tokens):
    """In one step, in chunks, and after the first of them has ended; also one that is wholly in the cache."""
    model = checkpoint("grouped heads, tied")
    start, *rest = make_prompts(14)[-1:] + make_prompts(9)
    assert len(start) == 64
    prompts = [start, *(start[: 16 * (1 + i % 4)] + prompt for i, prompt in enumerate(rest)), start, start[:48]]
    llm = make_cpu_llm(model, max_num_batched_tokens=max_num_batched_tokens)
    watch = Watch(llm)

    first = llm.generate(prompts, greedy(12))
    again = llm.generate(prompts, greedy(12))

    references = greedy_reference(model, prompts, 12)
    for outputs in (first, again):
        assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)
    assert [output.num_cached_tokens for output in again] == [(len(prompt) - 1) // 16 * 16 for prompt in prompts]
    assert sum(output.num_cached_tokens for output in first) > 0
    assert (watch.num_chunked > 0) == (max_num_batched_tokens == 13)


def test_a_conversation_that_goes_on_finds_what_was_generated(checkpoint, make_cpu_llm):
    model = checkpoint("grouped heads, tied")
    (prompt,) = make_prompts(1)
    llm = make_cpu_llm(model)
    for turn in range(4):
        (output,) = llm.generate([prompt], greedy(20))

        assert_equal_tokens([output.outputs[0].token_ids], greedy_reference(model, [prompt], 20))
        # All but the last token before this turn's were computed.
        assert output.num_cached_tokens == (0 if turn == 0 else (len(prompt) - 4) // 16 * 16)
        prompt = prompt + output.outputs[0].token_ids + [7, 8, 9]


def test_neighbours_that_are_cancelled_do_not_change_the_tokens(checkpoint, make_cpu_llm):
    model, prompts = checkpoint("one kv head"), make_prompts(12)
    llm = make_cpu_llm(model, max_num_batched_tokens=19, kv_cache_memory=blocks_of_memory(11))
    engine = llm.llm_engine
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, greedy(30), final_only=True)
    doomed = ["1", "4", "5", "8", "10"]
    ended: dict[str, CompletionOutput] = {}
    states = set()
    for step in itertools.count():
        if step % 3 == 2 and doomed:
            request = engine.engine_core.scheduler.requests.get(doomed[0])
            states.add(request.status.name if request else "ended")
            engine.abort_request(doomed.pop(0))
        ended |= {output.request_id: output.outputs[0] for output in engine.step()}
        engine.engine_core.check_integrity()
        if not engine.has_unfinished_requests():
            break

    assert engine.get_stats().num_preemptions > 0
    assert states >= {"RUNNING", "WAITING"}
    kept = [i for i in range(len(prompts)) if ended[str(i)].finish_reason == "length"]
    assert len(kept) == len(prompts) - 5
    references = greedy_reference(model, [prompts[i] for i in kept], 30)
    assert_equal_tokens([ended[str(i)].token_ids for i in kept], references)


@pytest.mark.parametrize("policy", [pytest.param("fcfs", marks=pytest.mark.slow), "priority"])
def test_concurrent_streams_get_the_tokens_of_transformers(checkpoint, policy):
    model, prompts = checkpoint("one kv head"), make_prompts(12)
    prompts += [[*prompt, 5] for prompt in prompts[5:]]

    async def serve(engine: AsyncLLM, i: int) -> list[int]:
        await asyncio.sleep(0.01 * (i % 5))
        # The one that is left early is so long that no reader comes too late for that.
        num_tokens = 100 if i == 3 else 30
        stream = engine.generate(prompts[i], greedy(num_tokens), priority=-i if policy == "priority" else 0)
        async for output in stream:
            if i == 3 and len(output.outputs[0].token_ids) > 4:
                await stream.aclose()
        return output.outputs[0].token_ids

    async def main() -> list[list[int]]:
        engine = AsyncLLM(
            model,
            dtype="float32",
            platform="cpu",
            max_num_batched_tokens=19,
            kv_cache_memory=blocks_of_memory(11),
            scheduling_policy=policy,
        )
        async with engine:
            token_ids = await asyncio.gather(*(serve(engine, i) for i in range(len(prompts))))
            stats = await engine.get_stats()
            assert stats.num_preemptions > 0
            assert stats.prefix_cache_hits > 0
            assert (stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage) == (0, 0, 0)
        return token_ids

    token_ids = asyncio.run(main())

    assert len(token_ids.pop(3)) < 100
    del prompts[3]
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
