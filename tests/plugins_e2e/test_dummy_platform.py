"""A documented platform plugin runs a model: its own worker, attention, communicator and ops, and nothing instead."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.families import write_model
from support.overrides import remove
from support.reference import assert_equal_tokens, greedy_reference
from torch.library import opcheck

from vllm_ext import LLM, AsyncLLM, SamplingParams
from vllm_ext.errors import ConfigError, InvalidRequest, PluginNotFound, VllmExtError

DEMO_MODEL = Path(__file__).parent.parent.parent / "vllm_ext" / "assets" / "demo_model"
NUM_TOKENS = 12
PROMPTS = [[5, 17, 300, 4], [9], [250, 8, 8, 41, 7, 7, 90, 120, 33, 2, 64, 65, 66, 67, 68, 69, 70, 71, 72]]


@pytest.fixture
def project(plugins) -> Path:
    """The installed package of the dummy platform."""
    return plugins.project("vllm_ext_dummy_platform")


def start(model: Path, platform: str = "dummy", **settings) -> LLM:
    return LLM(model=model, platform=platform, **settings)


def generate(llm: LLM, prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
    llm.llm_engine.engine_core.scheduler.check_integrity()
    return [output.outputs[0].token_ids for output in outputs]


def count_calls(llm: LLM, num_tokens: int) -> Counter[str]:
    """Calls of the plugin's parts while ``num_tokens`` tokens are generated, one step for each."""
    from vllm_ext_dummy_platform import calls

    calls.clear()
    generate(llm, PROMPTS, num_tokens)
    return Counter(calls)


def parts_not_used(model: Path) -> dict[str, str]:
    """The parts of the plugin that do not run when the model runs on it, and what was seen instead."""
    config, steps = json.loads((model / "config.json").read_text()), 4
    num_layers = config["num_hidden_layers"]
    activation = {"silu": "silu_and_mul", "gelu_pytorch_tanh": "gelu_and_mul"}[config["hidden_act"]]
    try:
        llm = start(model)
    except VllmExtError as error:
        return {"start": str(error)}
    try:
        name = llm.dispatcher.platform.get_device_name()
    except NotImplementedError as error:
        return {"start": str(error)}
    with llm:
        layout = llm.llm_engine.engine_core.kv_cache_config.kv_cache_layout.value
        if layout != "BLHNC":
            return {"layout": f"the KV cache has layout {layout}"}
        seen = count_calls(llm, steps)
        (choice,) = llm.dispatcher.attention_choices.values()
        refused = choice.backend.validate_configuration(head_size=16, dtype=torch.float16)
    if [one.name for one in choice.considered] != ["DUMMY_ATTN", "SDPA"]:
        return {"candidates": f"considered: {', '.join(one.name for one in choice.considered)}"}
    if not refused:
        return {"attention_dtypes": "its backend takes float16"}
    if name != "dummy device":
        return {"device_name": f"the device is called {name}"}
    if llm.dispatcher.platform.supported_dtypes != [torch.float32, torch.bfloat16]:
        return {"supported_dtypes": "they are those of the base class"}
    if llm.dispatcher.vllm_config.compilation_config.static_forward_context:
        return {"shutdown": "layers are left after shutdown"}
    # Two norms in each layer and one at the end; two sums in each layer and one over the embedding.
    expected = {
        "vocab_parallel_embedding": steps,
        "rotary_embedding": steps * num_layers,
        "row_parallel_linear": steps * 2 * num_layers,
        "logits_processor": steps,
        "parallel_lm_head": steps,
        "sampler": steps * len(PROMPTS),
        "worker_steps": steps,
        "attention": steps * num_layers,
        "kv_cache_update": steps * num_layers,
        "attention_metadata": steps,
        "rms_norm": steps * (2 * num_layers + 1),
        activation: steps * num_layers,
        "all_reduce": steps * (2 * num_layers + 1),
        "all_gather": steps,
    }
    return {part: f"{seen[part]} calls instead of {count}" for part, count in expected.items() if seen[part] != count}


@pytest.mark.parametrize("model", ["random_llama", "demo_model"])
def test_the_tokens_are_those_of_transformers(project, model, random_llama):
    directory = DEMO_MODEL if model == "demo_model" else random_llama
    references = greedy_reference(directory, PROMPTS, NUM_TOKENS)

    with start(directory) as llm:
        assert_equal_tokens(generate(llm, PROMPTS), references)


@pytest.mark.parametrize("model", ["random_llama", "demo_model"])
def test_every_part_of_the_plugin_runs(project, model, random_llama):
    assert parts_not_used(DEMO_MODEL if model == "demo_model" else random_llama) == {}


@pytest.mark.parametrize(
    "module, target, part, complaint",
    [
        ("my_dummy_platform", "MyDummyPlatform.check_and_update_config", "start", "worker_cls at 'auto'"),
        ("my_dummy_platform", "MyDummyPlatform.get_attn_backend_cls", "start", "not implement get_attn_backend_cls"),
        ("my_dummy_platform", "MyDummyPlatform.get_device_communicator_cls", "all_reduce", "0 calls"),
        ("my_dummy_device_communicator", "MyDummyDeviceCommunicator.all_reduce", "all_reduce", "0 calls"),
        ("my_dummy_device_communicator", "MyDummyDeviceCommunicator.all_gather", "all_gather", "0 calls"),
        ("my_dummy_attention", "MyDummyAttention.supported_kv_cache_layouts", "layout", "layout LBNHC"),
        ("my_dummy_platform", "MyDummyPlatform.get_attn_backend_candidates", "candidates", "considered: DUMMY_ATTN"),
        ("my_dummy_attention", "MyDummyAttention.get_impl_cls", "start", "does not implement get_impl_cls"),
        ("my_dummy_attention", "MyDummyAttention.get_builder_cls", "start", "does not implement get_builder_cls"),
        ("my_dummy_attention", "forward_includes_kv_cache_update = False", "kv_cache_update", "0 calls"),
        ("my_dummy_attention", "supported_dtypes = (", "attention_dtypes", "float16"),
        (
            "my_dummy_platform",
            "MyDummyPlatform.pre_register_and_update",
            "start",
            "no attention backend is called 'DUMMY_ATTN'",
        ),
        ("my_dummy_custom_ops", "RMSNorm.register_oot(", "rms_norm", "0 calls"),
        ("my_dummy_custom_ops", "SiluAndMul.register_oot(", "silu_and_mul", "0 calls"),
        ("my_dummy_custom_ops", "RotaryEmbedding.register_oot(", "rotary_embedding", "0 calls"),
        ("my_dummy_custom_ops", "VocabParallelEmbedding.register_oot(", "vocab_parallel_embedding", "0 calls"),
        ("my_dummy_custom_ops", "RowParallelLinear.register_oot(", "row_parallel_linear", "0 calls"),
        ("my_dummy_custom_ops", 'name="ParallelLMHead"', "parallel_lm_head", "0 calls"),
        ("my_dummy_custom_ops", 'name="LogitsProcessor"', "logits_processor", "0 calls"),
        ("my_dummy_custom_ops", 'name="Sampler"', "sampler", "0 calls"),
        ("my_dummy_custom_ops", "MyDummyRotaryEmbedding.forward_oot", "rotary_embedding", "0 calls"),
        ("my_dummy_custom_ops", "MyDummyRMSNorm.forward_oot", "rms_norm", "0 calls"),
        ("my_dummy_custom_ops", "MyDummySiluAndMul.forward_oot", "silu_and_mul", "0 calls"),
        ("my_dummy_custom_ops", "MyDummyVocabParallelEmbedding.forward", "vocab_parallel_embedding", "0 calls"),
        ("my_dummy_custom_ops", "MyDummyRowParallelLinear.forward", "row_parallel_linear", "0 calls"),
        ("my_dummy_custom_ops", "MyDummyParallelLMHead.forward", "parallel_lm_head", "0 calls"),
        ("my_dummy_custom_ops", "MyDummyLogitsProcessor.forward", "logits_processor", "0 calls"),
        ("my_dummy_custom_ops", "MyDummySampler.forward", "sampler", "0 calls"),
        ("my_dummy_platform", "_enum = PlatformEnum.OOT", "start", "does not set _enum"),
        ("my_dummy_platform", 'device_type = "cpu"', "start", "does not set device_type"),
        ("my_dummy_platform", 'device_name = "cpu"', "start", "does not set device_name"),
        ("my_dummy_worker", "MyDummyWorker.execute_model", "start", "execute_model"),
        ("my_dummy_worker", "MyDummyWorker.shutdown", "shutdown", "layers are left"),
        ("my_dummy_platform", "MyDummyPlatform.get_device_name", "start", "get_device_name"),
        ("my_dummy_platform", "MyDummyPlatform.supported_dtypes", "supported_dtypes", "those of the base class"),
    ],
)
def test_a_part_that_is_left_out_is_noticed(project, random_llama, module, target, part, complaint):
    remove(project, module, target)

    unused = parts_not_used(random_llama)

    assert complaint in unused.get(part, ""), unused


def test_what_its_attention_backend_says_of_block_sizes_is_heard(project, random_llama):
    with pytest.raises(ConfigError, match="'DUMMY_ATTN' .* cannot serve this model: block size 6 is not supported"):
        start(random_llama, block_size=6)


def test_a_block_size_is_refused_for_nothing_else(project, random_llama):
    remove(project, "my_dummy_attention", "MyDummyAttention.get_supported_kernel_block_sizes")

    with start(random_llama, block_size=6) as llm:
        assert_equal_tokens(generate(llm, PROMPTS), greedy_reference(random_llama, PROMPTS, NUM_TOKENS))


@pytest.mark.parametrize("name", ["dummy_attn", "SDPA", "REFERENCE"])
def test_the_settings_name_any_registered_backend(project, random_llama, name):
    references = greedy_reference(random_llama, PROMPTS, NUM_TOKENS)

    with start(random_llama, overrides={"attention.backend": name}) as llm:
        assert {c.backend.get_name() for c in llm.dispatcher.attention_choices.values()} == {name.upper()}
        assert_equal_tokens(generate(llm, PROMPTS), references)


@pytest.fixture(scope="session")
def gelu_llama(tmp_path_factory) -> Path:
    """A Llama with the other gated activation."""
    config = {"model_type": "llama", "hidden_act": "gelu_pytorch_tanh"}
    return write_model(tmp_path_factory.mktemp("gelu"), config, spread=0.1)


def test_the_tokens_of_the_other_activation_are_those_of_transformers(project, gelu_llama):
    references = greedy_reference(gelu_llama, PROMPTS, NUM_TOKENS)

    with start(gelu_llama) as llm:
        assert_equal_tokens(generate(llm, PROMPTS), references)
    assert parts_not_used(gelu_llama) == {}


@pytest.mark.parametrize("target", ["GeluAndMul.register_oot(", "MyDummyGeluAndMul.forward_oot"])
def test_the_other_activation_left_out_is_noticed(project, gelu_llama, target):
    remove(project, "my_dummy_custom_ops", target)

    assert "0 calls" in parts_not_used(gelu_llama)["gelu_and_mul"]


def test_an_op_of_torch_that_is_not_registered_is_noticed(project, gelu_llama):
    """It lasts as long as its process, so that this needs one of its own."""
    remove(project, "my_dummy_custom_ops", "direct_register_custom_op(")
    program = f"from vllm_ext import LLM; LLM({str(gelu_llama)!r}, platform='dummy')"

    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(project.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "'_OpNamespace' 'vllm_ext' object has no attribute 'my_dummy_gelu_and_mul'" in done.stderr


def test_its_op_of_torch_passes_torchs_own_check(project, gelu_llama):
    with start(gelu_llama):
        opcheck(torch.ops.vllm_ext.my_dummy_gelu_and_mul, (torch.randn(3, 8), "tanh"))


@pytest.mark.parametrize("setting", ["-rms_norm", "-rotary_embedding"])
def test_a_replaced_op_is_turned_off_by_the_name_of_the_op(project, random_llama, setting):
    with start(random_llama, overrides={"custom_ops": [setting]}) as llm:
        calls = count_calls(llm, 3)

    assert calls[setting[1:]] == 0
    assert calls["silu_and_mul"] > 0


def test_the_in_tree_worker_samples_by_the_platforms_sampler(project, random_llama):
    references = greedy_reference(random_llama, PROMPTS, NUM_TOKENS)

    with start(random_llama, overrides={"worker.cls": "vllm_ext.worker.worker.Worker"}) as llm:
        assert count_calls(llm, 5)["sampler"] == 5
        assert_equal_tokens(generate(llm, PROMPTS), references)


def test_without_the_project_the_error_lists_the_platforms_that_are_there(random_llama):
    with pytest.raises(PluginNotFound) as caught:
        start(random_llama)

    assert "'dummy'" in str(caught.value)
    assert "cpu" in str(caught.value)


def test_long_prompts_in_chunks_give_the_same_tokens(project, random_llama):
    references = greedy_reference(random_llama, PROMPTS, NUM_TOKENS)

    with start(random_llama, max_num_batched_tokens=5, block_size=4) as llm:
        token_ids = generate(llm, PROMPTS)

        from vllm_ext_dummy_platform import calls

        assert calls["worker_steps"] > NUM_TOKENS + 2, "prompts were computed in several steps"
    assert_equal_tokens(token_ids, references)


def test_preempted_requests_give_the_same_tokens(project, random_llama):
    references = greedy_reference(random_llama, PROMPTS, NUM_TOKENS)
    block_bytes = 4 * 2 * 2 * 16 * 4 * 3  # tokens, KV heads, key and value, head size, float32, layers

    with start(random_llama, block_size=4, kv_cache_memory=10 * block_bytes) as llm:
        token_ids = generate(llm, PROMPTS)

        assert llm.llm_engine.engine_core.scheduler.num_preemptions > 0
    assert_equal_tokens(token_ids, references)


def test_prompts_that_begin_alike_share_blocks_and_give_the_same_tokens(project, random_llama):
    prompts = [PROMPTS[2], PROMPTS[2], PROMPTS[2][:12], [*PROMPTS[2][:9], 77, 78]]
    references = greedy_reference(random_llama, prompts, NUM_TOKENS)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)

    with start(random_llama, block_size=4, max_num_batched_tokens=11) as llm:
        for expected in (None, [16, 16, 8, 8]):
            outputs = llm.generate(prompts, params)
            assert_equal_tokens([output.outputs[0].token_ids for output in outputs], references)
            cached = [output.num_cached_tokens for output in outputs]
            assert cached == expected or (expected is None and sum(cached) > 0)


def test_a_platform_can_turn_prefix_caching_off(project, random_llama):
    path = project / "my_dummy_platform.py"
    hook = "        # May run more than once"
    assert path.read_text().count(hook) == 1
    off = "        vllm_config.cache_config.enable_prefix_caching = False\n"
    path.write_text(path.read_text().replace(hook, off + hook))
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)

    with start(random_llama, block_size=4) as llm:
        cached = [llm.generate(PROMPTS[2], params)[0].num_cached_tokens for _ in range(2)]
        (change,) = [change for change in llm.dispatcher.changes if "prefix" in change.path]

    assert cached == [0, 0]
    assert (change.before, change.after, change.origin) == (True, False, "platform:dummy")


def test_concurrent_streams_give_the_same_tokens(project, random_llama):
    references = greedy_reference(random_llama, PROMPTS, NUM_TOKENS)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    block_bytes = 4 * 2 * 2 * 16 * 4 * 3  # as above

    async def serve(engine: AsyncLLM, prompt: list[int]) -> list[int]:
        *_, last = [output async for output in engine.generate(prompt, params)]
        return last.outputs[0].token_ids

    async def main() -> list[list[int]]:
        engine = AsyncLLM(
            random_llama, platform="dummy", block_size=4, kv_cache_memory=10 * block_bytes, max_num_batched_tokens=5
        )
        async with engine:
            token_ids = await asyncio.gather(*(serve(engine, prompt) for prompt in PROMPTS * 2))
            assert (await engine.get_stats()).num_preemptions > 0
            await engine.check_health()
        return token_ids

    assert_equal_tokens(asyncio.run(main()), references * 2)


def test_a_seed_decides_the_tokens_whatever_else_runs(project, random_llama):
    seeded = SamplingParams(temperature=1.0, max_tokens=NUM_TOKENS, seed=11, ignore_eos=True)
    other_seed = SamplingParams(temperature=1.0, max_tokens=NUM_TOKENS, seed=12, ignore_eos=True)
    prompt = {"prompt_token_ids": PROMPTS[0]}

    with start(random_llama) as llm:
        alone = llm.generate(prompt, seeded)[0].outputs[0].token_ids
        together = llm.generate([prompt, prompt], [other_seed, seeded])

    assert together[1].outputs[0].token_ids == alone
    assert together[0].outputs[0].token_ids != alone


def test_a_parameter_that_its_worker_has_not_is_refused_and_not_ignored(project, random_llama):
    with start(random_llama, "dummy") as llm:
        message = "MyDummyWorker of the chosen platform does not act on logprobs, top_k; it acts on: seed, temperature"
        with pytest.raises(InvalidRequest, match=message):
            llm.generate([[1, 2]], SamplingParams(top_k=2, logprobs=1))
        assert llm.generate([[1, 2]], SamplingParams(max_tokens=2))[0].finished


def test_engines_on_two_platforms_step_side_by_side(project, random_llama):
    references = greedy_reference(random_llama, PROMPTS, NUM_TOKENS)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)

    with start(random_llama, platform="cpu") as in_tree, start(random_llama) as out_of_tree:
        from vllm_ext_dummy_platform import calls

        calls.clear()
        engines = {"cpu": in_tree.llm_engine, "dummy": out_of_tree.llm_engine}
        token_ids: dict[str, dict[str, list[int]]] = {name: {} for name in engines}
        for engine in engines.values():
            for number, prompt in enumerate(PROMPTS):
                engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
        steps: Counter[str] = Counter()
        while any(engine.has_unfinished_requests() for engine in engines.values()):
            for name, engine in engines.items():
                if engine.has_unfinished_requests():
                    outputs = engine.step()
                    steps[name] += bool(outputs)
                    token_ids[name] |= {output.request_id: output.outputs[0].token_ids for output in outputs}

        assert steps == {"cpu": NUM_TOKENS, "dummy": NUM_TOKENS}
        # Only the dummy engine's steps are the plugin's.
        assert calls["worker_steps"] == NUM_TOKENS
        assert calls["attention"] == NUM_TOKENS * 3
        assert calls["rms_norm"] == NUM_TOKENS * 7
    for name in engines:
        assert_equal_tokens([token_ids[name][str(number)] for number in range(len(PROMPTS))], references)


def test_registering_again_changes_nothing(project, random_llama, caplog):
    from vllm_ext_dummy_platform import register, register_ops

    with start(random_llama) as llm:
        before = generate(llm, PROMPTS)
        register_ops()
        register_ops()
        assert register() == register()
        assert caplog.messages == []

        assert generate(llm, PROMPTS) == before
    assert parts_not_used(random_llama) == {}
