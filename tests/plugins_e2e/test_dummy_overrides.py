"""Attention, scheduler, tokenizer, loader, quantization, resolver: each method is overridden, and it is reached.

Platform and worker are in ``test_dummy_hooks.py``, the communicator in ``test_dummy_communicator.py``, and ops in
``test_dummy_platform.py``. What is to be overridden follows from the contracts.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.compatibility import public_methods
from support.families import copy_with_config
from support.overrides import count_calls, remove
from support.reference import assert_equal_tokens, greedy_reference

from vllm_ext import (
    LLM,
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    BaseModelLoader,
    LinearMethod,
    LoRAResolver,
    LoRAResolverRegistry,
    QuantizationConfig,
    SamplingParams,
    SchedulerInterface,
    TokenizerLike,
)
from vllm_ext.contracts.platform import AttentionSelectorConfig
from vllm_ext.errors import ConfigError, ContractError, EngineError, VllmExtError

PACKAGE = "vllm_ext_dummy_platform"
PARTS = {
    "my_dummy_attention.MyDummyAttention": AttentionBackend,
    "my_dummy_attention.MyDummyAttentionMetadataBuilder": AttentionMetadataBuilder,
    "my_dummy_attention.MyDummyAttentionImpl": AttentionImpl,
    "my_dummy_scheduler.MyDummyScheduler": SchedulerInterface,
    "my_dummy_tokenizer.MyDummyTokenizer": TokenizerLike,
    "my_dummy_model_loader.MyDummyModelLoader": BaseModelLoader,
    "my_dummy_quantization.MyDummyQuantizationConfig": QuantizationConfig,
    "my_dummy_quantization.MyDummyLinearMethod": LinearMethod,
    "my_dummy_lora_resolver.MyDummyLoRAResolver": LoRAResolver,
}
METHODS = sorted(
    f"{part}.{name}"
    for part, contract in PARTS.items()
    for name in public_methods(contract)
    if name != "get_cudagraph_support"
)
"""Static graphs are the in-tree worker's (tests/worker/test_static_graphs.py)."""
SETTINGS = {
    "quantization": "dummy_grid",
    "load_format": "dummy_files",
    "tokenizer_mode": "dummy_bytes",
    "scheduler_cls": f"{PACKAGE}.my_dummy_scheduler.MyDummyScheduler",
}
SAID = {
    "get_supported_head_sizes": "head size 16 is not among []",
    "supported_kv_cache_layouts": "shape mismatch",
}
"""Of what is left out, where that is not its name."""
TOKENS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
LAYER_WITH_ALL = AttentionSelectorConfig(
    16, torch.float32, "auto", None, has_sink=True, has_sliding_window=True, has_logits_soft_cap=True,
    has_alibi_slopes=True,
)  # fmt: skip


@pytest.fixture
def project(plugins) -> Path:
    return plugins.project(PACKAGE)


@pytest.fixture
def model(random_llama, tmp_path) -> Path:
    """A checkpoint that says in a file of the method's own how it is quantized."""
    copied = copy_with_config(random_llama, tmp_path, {})
    (copied / "tokenizer.json").symlink_to(random_llama / "tokenizer.json")
    (copied / "dummy_quantization.json").write_text(json.dumps({"quant_method": "dummy_grid"}))
    return copied


def reached(model: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The methods that are used in the life of an engine whose users do all there is to do."""
    counters: dict[str, Counter[str]] = {}
    for part in PARTS:
        module, _, name = part.partition(".")
        counters[part] = Counter()
        count_calls(getattr(importlib.import_module(f"{PACKAGE}.{module}"), name), counters[part], monkeypatch.setattr)
    with LLM(model, platform="dummy", **SETTINGS) as llm:
        core = llm.llm_engine.engine_core
        llm.generate("the dog", TOKENS)
        assert llm.reset_prefix_cache()
        assert llm.llm_engine.get_stats().num_running_reqs == 0
        core.check_integrity()
        asyncio.run(LoRAResolverRegistry.resolve_lora(str(model), "nothing"))
        with pytest.raises(ConfigError):
            llm.dispatcher.attention_factory(LAYER_WITH_ALL, 4)
        stream = llm.stream("the dog", TOKENS)
        next(stream)
        stream.close()
        monkeypatch.setattr(core.executor, "execute_model", lambda scheduler_output: 1 / 0)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            llm.generate("the dog", TOKENS)
    ask_what_is_rarely_asked(model, monkeypatch)
    return {f"{part}.{name}" for part, seen in counters.items() for name in seen}


def ask_what_is_rarely_asked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start engines that do not come far: on a model that does not say how many tokens it has, and with a method that
    takes none of its layers.
    """
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": None}))
    with pytest.raises(VllmExtError, match="vocab_size is missing"):
        LLM(model, platform="dummy", **SETTINGS)
    (model / "config.json").write_text(json.dumps(config))
    quantization = importlib.import_module(f"{PACKAGE}.my_dummy_quantization")
    monkeypatch.setattr(quantization.MyDummyQuantizationConfig, "get_quant_method", lambda self, layer, prefix: None)
    with pytest.raises(ConfigError, match="quantization 'dummy_grid' takes none of the layers"):
        LLM(model, platform="dummy", **SETTINGS)


def test_every_override_is_reached(project, model, monkeypatch):
    assert set(METHODS) - reached(model, monkeypatch) == set()


def what_is_lost(model: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], str]:
    """The methods that are not reached; or none, and why there is no engine."""
    try:
        return set(METHODS) - reached(model, monkeypatch), ""
    except (VllmExtError, TypeError) as error:
        return set(), str(error)


@pytest.mark.parametrize("method", METHODS)
def test_an_override_that_is_left_out_is_noticed(project, model, monkeypatch, method):
    module, _, target = method.partition(".")
    remove(project, module, target)
    name = target.partition(".")[2]

    lost, error = what_is_lost(model, monkeypatch)

    # Without some there is no engine, and the error names them; without others those are lost too that only they ask.
    assert method in lost or SAID.get(name, name) in error


def test_a_worker_in_two_phases_gives_the_same_tokens(project, random_llama):
    prompts = [[5, 17, 300, 4], [9]]
    overrides = {"worker.cls": f"{PACKAGE}.my_dummy_worker_variants.MyDummyTwoPhaseWorker"}

    with LLM(random_llama, platform="dummy", overrides=overrides) as llm:
        outputs = llm.generate(prompts, TOKENS)

    references = greedy_reference(random_llama, prompts, 6)
    assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)


def test_a_second_phase_that_is_left_out_is_noticed(project, random_llama):
    remove(project, "my_dummy_worker_variants", "MyDummyTwoPhaseWorker.sample_tokens")
    overrides = {"worker.cls": f"{PACKAGE}.my_dummy_worker_variants.MyDummyTwoPhaseWorker"}

    with (
        LLM(random_llama, platform="dummy", overrides=overrides) as llm,
        pytest.raises(EngineError, match=r"MyDummyTwoPhaseWorker does not implement sample_tokens\(\)"),
    ):
        llm.generate([[5, 6, 7]], TOKENS)


def test_the_workers_extension_is_called_by_name(project, random_llama):
    overrides = {"worker.extension_cls": f"{PACKAGE}.my_dummy_worker_variants.MyDummyWorkerExtension"}

    with LLM(random_llama, platform="dummy", overrides=overrides, block_size=8) as llm:
        slots = llm.collective_rpc("count_dummy_slots")

        assert slots == [8 * llm.llm_engine.engine_core.kv_cache_config.num_blocks]


def test_an_extension_without_the_method_is_noticed(project, random_llama):
    remove(project, "my_dummy_worker_variants", "MyDummyWorkerExtension.count_dummy_slots")
    overrides = {"worker.extension_cls": f"{PACKAGE}.my_dummy_worker_variants.MyDummyWorkerExtension"}

    with (
        LLM(random_llama, platform="dummy", overrides=overrides) as llm,
        pytest.raises(ContractError, match="has no method 'count_dummy_slots'"),
    ):
        llm.collective_rpc("count_dummy_slots")
