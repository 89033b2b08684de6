"""What the dummy platform's plugin registers by name runs in an engine that names it; what is left out is noticed."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.overrides import remove
from support.quantized import copy_with_weights
from support.reference import assert_equal_tokens, greedy_reference

from vllm_ext import LLM, LoRAResolverRegistry, SamplingParams
from vllm_ext.errors import InvalidRequest, PluginLoadError, PluginNotFound, VllmExtError

NUM_TOKENS, PROMPT = 6, "the dog"
TOKENS = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
SETTINGS = {
    "quantization": "dummy_grid",
    "load_format": "dummy_files",
    "tokenizer_mode": "dummy_bytes",
    "scheduler_cls": "vllm_ext_dummy_platform.my_dummy_scheduler.MyDummyScheduler",
}
LAYERS, LINEARS = 3, 4
"""Of the random Llama; query, key and value are one product, as gate and up are."""


@pytest.fixture
def project(plugins) -> Path:
    return plugins.project("vllm_ext_dummy_platform")


def count_calls(model: Path) -> Counter[str]:
    """What the plugin counts while an engine with all of its parts answers, and an adapter is looked for."""
    from vllm_ext_dummy_platform import calls

    calls.clear()
    with LLM(model, platform="dummy", **SETTINGS) as llm:
        llm.generate(PROMPT, TOKENS)
        asyncio.run(LoRAResolverRegistry.resolve_lora(str(model), "nothing"))
    return Counter(calls)


def parts_not_used(model: Path) -> dict[str, str]:
    """The parts that did not run, and what was seen instead."""
    try:
        seen = count_calls(model)
    except (VllmExtError, NotImplementedError, TypeError) as error:
        return {"start": str(error)}
    steps = NUM_TOKENS + 1  # the last one tells who ended
    expected = {
        "download_model": 1,
        "load_weights": 1,
        "encode": 1,
        "schedule": steps,
        "scheduler_shutdown": 1,
        "resolve_lora": 1,
    }
    unused = {part: f"{seen[part]} calls" for part, count in expected.items() if seen[part] != count}
    if seen["quantized_products"] < NUM_TOKENS * LAYERS * LINEARS:
        unused["quantized_products"] = f"{seen['quantized_products']} calls"
    if not seen["decode"]:
        unused["decode"] = "0 calls"
    return unused


def test_every_part_runs(project, random_llama):
    assert parts_not_used(random_llama) == {}


@pytest.mark.parametrize(
    ("module", "target", "part", "complaint"),
    [
        ("__init__", 'register_quantization_config("dummy_grid")', "start", "no quantization method 'dummy_grid'"),
        ("__init__", 'register_model_loader("dummy_files")', "start", "no load format 'dummy_files'"),
        ("__init__", "TokenizerRegistry.register(", "start", "no tokenizer mode 'dummy_bytes'"),
        ("__init__", "LoRAResolverRegistry.register_resolver(", "resolve_lora", "0 calls"),
        ("my_dummy_quantization", "MyDummyLinearMethod.apply", "start", "MyDummyLinearMethod"),
        ("my_dummy_quantization", "MyDummyQuantizationConfig.get_quant_method", "start", "MyDummyQuantizationConfig"),
        ("my_dummy_model_loader", "MyDummyModelLoader.load_weights", "start", "MyDummyModelLoader"),
        ("my_dummy_tokenizer", "MyDummyTokenizer.encode", "start", "lacks encode"),
        ("my_dummy_scheduler", "MyDummyScheduler.schedule", "schedule", "0 calls"),
        ("my_dummy_scheduler", "MyDummyScheduler.shutdown", "scheduler_shutdown", "0 calls"),
        ("my_dummy_lora_resolver", "calls[", "resolve_lora", "0 calls"),
    ],
)
def test_a_part_that_is_left_out_is_noticed(project, random_llama, module, target, part, complaint):
    remove(project, module, target)

    unused = parts_not_used(random_llama)

    assert complaint in unused.get(part, ""), unused


def test_the_tokens_are_those_of_the_rounded_weights(project, random_llama, tmp_path):
    prompts = [[5, 17, 300, 4], [9], list(range(20, 60))]
    rounded = copy_with_weights(random_llama, tmp_path / "rounded", lambda weight: (weight * 256).round() / 256)
    references = greedy_reference(rounded, prompts, 12)
    plain = greedy_reference(random_llama, prompts, 12)
    assert [r.token_ids for r in references] != [r.token_ids for r in plain], "rounding makes a difference"

    with LLM(random_llama, platform="dummy", quantization="dummy_grid", load_format="dummy_files") as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))

    assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)


def test_texts_are_the_tokenizers(project, random_llama):
    with LLM(random_llama, platform="dummy", tokenizer_mode="dummy_bytes") as llm:
        (output,) = llm.generate("né", SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))

    assert output.prompt_token_ids == [ord("n"), 0xC3, 0xA9]
    printable = [token_id for token_id in output.outputs[0].token_ids if token_id < 256]
    assert printable
    assert output.outputs[0].text == bytes(printable).decode(errors="replace")


def test_the_scheduler_gets_vllms_keywords_and_decides(project, random_llama):
    with LLM(random_llama, platform="dummy", scheduler_cls=SETTINGS["scheduler_cls"], block_size=8) as llm:
        core = llm.llm_engine.engine_core
        outputs = llm.generate([[1, 2], [3, 4]], TOKENS)
        keywords = core.scheduler.keywords
        from vllm_ext_dummy_platform import calls

        assert calls["schedule"] == 2 * NUM_TOKENS + 1, "one request after the other"

    assert [len(output.outputs[0].token_ids) for output in outputs] == [NUM_TOKENS] * 2
    assert set(keywords) == {
        "vllm_config", "kv_cache_config", "structured_output_manager", "include_finished_set", "log_stats",
        "block_size", "hash_block_size",
    }  # fmt: skip
    assert keywords["vllm_config"] is core.vllm_config
    assert keywords["kv_cache_config"] is core.kv_cache_config
    assert (keywords["block_size"], keywords["hash_block_size"]) == (8, 8)


def test_the_platform_can_name_the_scheduler(project, random_llama):
    path = project / "my_dummy_platform.py"
    hook = "        # May run more than once"
    named = f'        vllm_config.scheduler_config.scheduler_cls = "{SETTINGS["scheduler_cls"]}"\n'
    assert path.read_text().count(hook) == 1
    path.write_text(path.read_text().replace(hook, named + hook))

    with LLM(random_llama, platform="dummy") as llm:
        name = type(llm.llm_engine.engine_core.scheduler).__name__
        (change,) = [change for change in llm.dispatcher.changes if "scheduler" in change.path]

    assert name == "MyDummyScheduler"
    assert (change.before, change.origin) == ("auto", "platform:dummy")


def test_adapters_are_folders_within_the_directory_and_nowhere_else(project, random_llama, tmp_path, monkeypatch):
    (tmp_path / "adapters" / "poet").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    monkeypatch.setenv("DUMMY_ADAPTERS", str(tmp_path / "adapters"))

    def resolve(name: str):
        return asyncio.run(LoRAResolverRegistry.resolve_lora("base", name))

    with LLM(random_llama, platform="dummy"):
        found = resolve("poet")
        assert (found.lora_name, found.lora_path) == ("poet", str(tmp_path / "adapters" / "poet"))
        assert resolve("prose") is None
        for name in ("../secret", str(tmp_path / "secret")):
            with pytest.raises(PluginLoadError, match="is not a name of a directory within") as caught:
                resolve(name)
            assert isinstance(caught.value.__cause__, InvalidRequest)


def test_without_the_plugin_the_error_lists_what_is_there(random_llama):
    with pytest.raises(PluginNotFound, match="which engine.load_format names; registered: auto, dummy, safetensors"):
        LLM(random_llama, platform="cpu", load_format="dummy_files")


def test_a_dtype_that_the_method_does_not_compute_in_is_refused(project, random_llama):
    with pytest.raises(VllmExtError, match="'dummy_grid' does not compute in bfloat16; it supports: float32"):
        LLM(random_llama, platform="dummy", quantization="dummy_grid", dtype=torch.bfloat16)
