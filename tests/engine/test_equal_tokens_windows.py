"""Sequences several windows long, and longer than the KV cache, have the tokens that transformers gives: alone and side
by side, in chunks, behind prefixes, and after preemptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from support.families import ADAPTED, NATIVE, VOCAB_SIZE, write_model
from support.reference import Greedy, assert_equal_tokens, greedy_reference

from vllm_ext import _custom_ops
from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm import LLM
from vllm_ext.engine.scheduling.kv_cache_manager import KVCacheManager

BLOCK_SIZE, MAX_TOKENS = 4, 50
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
MODELS = {"mistral": NATIVE["mistral, window"], "phi3 through transformers": ADAPTED["phi3, window"]}
WINDOW = 12
"""Of phi3; that of mistral is shorter by one."""
MIXED = NATIVE["qwen2, window in two layers"]
CASES = [
    ("mistral", "SDPA"),
    ("mistral", "CPU_ATTN"),
    pytest.param(("mistral", "REFERENCE"), marks=pytest.mark.slow),
    ("phi3 through transformers", "SDPA"),
]
PROMPT_LENGTHS = (70, 34, 5, 2, 1)


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@dataclass(frozen=True, slots=True)
class Case:
    """A model directory, what transformers generates from it, and the attention backend to compare."""

    model: Path
    references: list[Greedy]
    backend: str


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Greedy]]]:
    @cache
    def write(name: str) -> tuple[Path, list[Greedy]]:
        model = write_model(tmp_path_factory.mktemp("window"), MODELS[name], seed=1)
        return model, greedy_reference(model, make_prompts(), MAX_TOKENS)

    return write


@pytest.fixture(params=CASES, ids=", ".join)
def case(request, write) -> Case:
    name, backend = request.param
    if backend == "CPU_ATTN" and (missing := _custom_ops.why_missing()) is not None:
        pytest.skip(f"there are no compiled kernels: {missing}")
    return Case(*write(name), backend)


@pytest.fixture
def make_window_llm(engines):
    """Makes an engine whose cache has ``num_blocks`` blocks."""

    def make(model: Path, num_blocks: int, backend: str = "auto", **settings: object) -> LLM:
        # Keys and values of 2 heads of 16 numbers in float32, in 3 layers.
        memory = num_blocks * BLOCK_SIZE * 2 * 2 * 16 * 4 * 3
        sizes = {"block_size": BLOCK_SIZE, "kv_cache_memory": memory, **settings}
        overrides = {} if backend == "auto" else {"attention.backend": backend}
        llm = LLM(model, dtype="float32", **{"platform": "cpu", **sizes}, overrides=overrides)
        engines.append(llm)
        assert manager_of(llm).block_pool.num_blocks == num_blocks
        return llm

    return make


def manager_of(llm: LLM) -> KVCacheManager:
    return llm.llm_engine.engine_core.scheduler.kv_cache_manager


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def blocks_in_use(llm: LLM, prompt: list[int]) -> Iterator[int]:
    """After each step of a generation."""
    pool = manager_of(llm).block_pool
    for _ in llm.stream(prompt, GREEDY):
        llm.llm_engine.engine_core.check_integrity()
        yield pool.num_blocks - pool.num_free_blocks


def test_a_long_generation_in_a_cache_for_one_window(case, make_window_llm):
    llm = make_window_llm(case.model, 4, case.backend)
    assert 4 * BLOCK_SIZE < 2 * WINDOW < MAX_TOKENS

    outputs = llm.generate(make_prompts(), GREEDY)

    assert llm.llm_engine.vllm_config.model_config.max_model_len == 256, "the cache limits no request"
    assert_equal_tokens(tokens(outputs), case.references)


def test_in_a_large_cache_a_request_holds_its_window_and_gives_the_rest_back(case, make_window_llm):
    llm = make_window_llm(case.model, 60, case.backend)
    prompt = make_prompts()[0]

    *in_use, at_the_end = blocks_in_use(llm, prompt)

    # The prompt came in one step, which takes them all.
    assert in_use[0] == -(-len(prompt) // BLOCK_SIZE) == 18
    assert max(in_use[5:]) <= WINDOW // BLOCK_SIZE + 1
    assert at_the_end == 0
    assert_equal_tokens(tokens(llm.generate([prompt], GREEDY)), case.references[:1])


def test_chunks_beside_others_that_decode(case, make_window_llm):
    llm = make_window_llm(case.model, 16, case.backend, max_num_batched_tokens=7)

    outputs = llm.generate(make_prompts(), GREEDY)

    assert max(PROMPT_LENGTHS) > 16 * BLOCK_SIZE > 7
    assert_equal_tokens(tokens(outputs), case.references)


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_preemptions(case, make_window_llm, enable_prefix_caching):
    settings = {"enable_prefix_caching": enable_prefix_caching, "max_num_batched_tokens": 9}
    llm = make_window_llm(case.model, 9, case.backend, **settings)

    outputs = llm.generate(make_prompts()[::-1], GREEDY)

    assert llm.llm_engine.engine_core.get_stats().num_preemptions > 0
    assert_equal_tokens(tokens(outputs), case.references[::-1])


def test_a_prefix_of_which_only_the_end_is_left(case, make_window_llm):
    llm = make_window_llm(case.model, 12, case.backend, max_num_batched_tokens=16)
    prompt, reference = make_prompts()[0], case.references[0]
    (first,) = llm.generate([prompt], GREEDY)
    # A user goes on after some tokens of the answer, where the cache has lost the beginning of both.
    num_answered = 40
    (again,) = llm.generate([[*prompt, *reference.token_ids[:num_answered]]], GREEDY)

    assert len(prompt) > 12 * BLOCK_SIZE
    assert first.num_cached_tokens == 0
    assert again.num_cached_tokens > len(prompt)
    assert_equal_tokens(tokens([first]), [reference])
    rest = Greedy(reference.token_ids[num_answered:], reference.leads[num_answered:])
    assert_equal_tokens([tokens([again])[0][: MAX_TOKENS - num_answered]], [rest])


def test_prompts_that_begin_alike_while_the_first_gives_blocks_back(case, make_window_llm):
    llm = make_window_llm(case.model, 60, case.backend, max_num_batched_tokens=16)
    prompt = make_prompts()[0]

    outputs = llm.generate([prompt, prompt, prompt], GREEDY)

    assert max(output.num_cached_tokens for output in outputs) > 0
    assert_equal_tokens(tokens(outputs), [case.references[0]] * 3)


def test_a_platforms_own_worker_and_attention(write, make_window_llm, plugins):
    model, references = write("mistral")
    plugins.project("vllm_ext_dummy_platform")
    llm = make_window_llm(model, 8, platform="dummy", max_num_batched_tokens=8)

    outputs = llm.generate(make_prompts(), GREEDY)

    assert max(PROMPT_LENGTHS) > 8 * BLOCK_SIZE
    assert_equal_tokens(tokens(outputs), references)


def test_a_model_with_a_layer_that_sees_everything_keeps_all_blocks(tmp_path, make_window_llm):
    llm = make_window_llm(write_model(tmp_path, MIXED, seed=1), 40)
    prompt = make_prompts()[0]

    *in_use, at_the_end = blocks_in_use(llm, prompt)

    assert in_use[-1] == -(-(len(prompt) + MAX_TOKENS - 2) // BLOCK_SIZE)
    assert at_the_end == 0
    assert llm.llm_engine.vllm_config.model_config.max_model_len == 40 * BLOCK_SIZE + 1
