"""Native families, and others through transformers, give the tokens that transformers gives: with chunks, preemptions,
and beyond their windows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import ADAPTED, NATIVE, NUM_LAYERS, VOCAB_SIZE, write_model
from support.reference import Greedy, assert_equal_tokens, greedy_reference

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm import LLM
from vllm_ext.errors import ConfigError

PROMPT_LENGTHS = (1, 23, 5, 40, 16, 17, 33, 2)
MAX_TOKENS = 20
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
BLOCK_SIZE = 8
FAMILIES = NATIVE | ADAPTED
CAPPED = "gemma2, soft caps"


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The model directory for an entry of ``FAMILIES``, and what transformers generates from it."""
    known: dict[str, tuple[Path, list[Greedy]]] = {}

    def write(name: str) -> tuple[Path, list[Greedy]]:
        if name not in known:
            model = write_model(tmp_path_factory.mktemp("family"), FAMILIES[name], seed=1)
            known[name] = model, greedy_reference(model, make_prompts(), MAX_TOKENS)
        return known[name]

    return write


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_equal_those_of_transformers(written, name):
    model, references = written(name)

    with LLM(model, dtype="float32", platform="cpu", block_size=BLOCK_SIZE, max_num_seqs=5) as llm:
        outputs = llm.generate(make_prompts(), GREEDY)

    assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != CAPPED])
def test_a_platforms_own_attention_runs_them(written, plugins, name):
    model, references = written(name)
    plugins.project("vllm_ext_dummy_platform")
    from vllm_ext_dummy_platform import calls

    calls.clear()
    with LLM(model, dtype="float32", platform="dummy", block_size=BLOCK_SIZE, max_num_seqs=5) as llm:
        outputs = llm.generate(make_prompts(), GREEDY)

    assert calls["attention"] == calls["worker_steps"] * NUM_LAYERS > 0
    assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)


def test_a_platform_whose_attention_cannot_serve_a_model_says_why(written, plugins):
    model, _ = written(CAPPED)
    plugins.project("vllm_ext_dummy_platform")

    with pytest.raises(ConfigError, match=r"'DUMMY_ATTN' .* cannot serve .*: a soft cap on the logits is not supp"):
        LLM(model, dtype="float32", platform="dummy")


@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_and_preemptions_do_not_change_the_tokens(written, name):
    model, references = written(name)
    with LLM(model, dtype="float32", platform="cpu", block_size=BLOCK_SIZE, max_num_seqs=5) as llm:
        bytes_per_block = sum(
            group.kv_cache_spec.page_size_bytes * len(group.layer_names)
            for group in llm.llm_engine.engine_core.kv_cache_config.kv_cache_groups
        )
    settings = {"max_num_batched_tokens": 11, "kv_cache_memory": 11 * bytes_per_block, "block_size": BLOCK_SIZE}

    with LLM(model, dtype="float32", platform="cpu", **settings) as llm:
        outputs = llm.generate(make_prompts(), GREEDY)
        scheduler = llm.llm_engine.engine_core.scheduler
        scheduler.check_integrity()

    assert scheduler.kv_cache_manager.block_pool.num_blocks == 11
    assert scheduler.num_preemptions > 0
    assert max(PROMPT_LENGTHS) > 11, "the longest prompts take several chunks"
    assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)
