"""Every hook of the platform and every method of the worker is overridden, and the engine gets there."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from support.overrides import count_calls, remove

from vllm_ext import LLM, AsyncLLM, SamplingParams, WorkerBase
from vllm_ext.contracts.platform_check import CALLS
from vllm_ext.errors import InvalidRequest, VllmExtError

PLATFORM = sorted({*CALLS, "get_attn_backend_cls"} - {"get_static_graph_wrapper_cls"})
"""Only the in-tree worker asks for a wrapper."""
ELSEWHERE = ("get_kv_cache_spaces", "sample_tokens", "get_whole_prompt_tasks")
"""Deprecated, for workers in two phases, and for models that pool (tests/models/test_pooling_decoders.py)."""
WORKER = sorted(
    name
    for name, value in vars(WorkerBase).items()
    if callable(value) and not name.startswith("_") and name not in ELSEWHERE
)
BLOCK_BYTES = 16 * 2 * 2 * 16 * 4 * 3  # tokens, KV heads, key and value, head size, float32, layers


MISSING = "does not implement"
FATAL = {
    "check_and_update_config": "worker_cls at 'auto'",
    "pre_register_and_update": "no attention backend is called 'DUMMY_ATTN'",
    "device_control_id_to_physical_device_id": "names device 'dummy0'; platform .*MyDummyPlatform takes numbers",
    "is_sleep_mode_available": r"engine.enable_sleep_mode is true, and platform 'dummy' has no sleep mode",
    "get_attn_backend_cls": f"{MISSING} get_attn_backend_cls",
    **{name: f"{MISSING} {name}" for name in ("get_device_name", "get_device_total_memory")},
    **{
        name: rf"{MISSING} {name}\(\)"
        for name in ("get_current_memory_usage", "manual_seed_all", "get_model", "profile")
    },
    **{
        name: f"{MISSING}: {name}"
        for name in (
            "determine_available_memory",
            "execute_model",
            "get_kv_cache_spec",
            "init_device",
            "initialize_from_config",
            "load_model",
            "sleep",
            "wake_up",
        )
    },
}
"""What an engine on this platform cannot do without, and what it says."""


@pytest.fixture
def project(plugins, monkeypatch) -> Path:
    monkeypatch.setenv("DUMMY_VISIBLE_DEVICES", "dummy0")
    return plugins.project("vllm_ext_dummy_platform")


def leave_out(project: Path, name: str) -> None:
    module, cls = ("worker", "MyDummyWorker") if name in WORKER else ("platform", "MyDummyPlatform")
    remove(project, f"my_dummy_{module}", f"{cls}.{name}")


def reached(model: Path, traces: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Overrides of platform and worker that are called in the life of an engine whose user asks for everything."""
    from vllm_ext_dummy_platform.my_dummy_platform import MyDummyPlatform
    from vllm_ext_dummy_platform.my_dummy_worker import MyDummyWorker

    seen: Counter[str] = Counter()
    count_calls(MyDummyPlatform, seen, monkeypatch.setattr)
    count_calls(MyDummyWorker, seen, monkeypatch.setattr)
    overrides = {"profiler.torch_profiler_dir": str(traces)}
    engine = {"kv_cache_memory": 6 * BLOCK_BYTES, "quantization": "int8", "enable_sleep_mode": True}
    with LLM(model, platform="dummy", overrides=overrides, **engine) as llm:
        llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=3))
        assert llm.reset_prefix_cache()
        llm.llm_engine.engine_core.check_health()
        llm.sleep()
        llm.wake_up()
        llm.start_profile("run")
        llm.stop_profile()
        llm.collective_rpc("get_model_inspection")
        assert llm.collective_rpc(lambda worker: worker.rank) == [0]
        assert llm.apply_model(lambda model: sum(p.numel() for p in model.parameters()))[0] > 0
    assert (traces / "run.json").is_file()
    return set(seen)


def test_every_override_is_reached(project, random_llama, tmp_path, monkeypatch):
    missing = {*PLATFORM, *WORKER} - reached(random_llama, tmp_path, monkeypatch)

    assert missing == set()


@pytest.mark.parametrize("name", sorted({*PLATFORM, *WORKER} - set(FATAL)))
def test_an_override_that_is_left_out_is_noticed(project, random_llama, tmp_path, monkeypatch, name):
    leave_out(project, name)

    assert {*PLATFORM, *WORKER} - reached(random_llama, tmp_path, monkeypatch) == {name}


@pytest.mark.parametrize("name, complaint", FATAL.items())
def test_without_an_override_that_the_engine_needs_it_does_not_run(
    project, random_llama, tmp_path, monkeypatch, name, complaint
):
    leave_out(project, name)

    with pytest.raises((VllmExtError, NotImplementedError), match=complaint):
        reached(random_llama, tmp_path, monkeypatch)


def test_overrides_take_effect(project, random_llama, monkeypatch, caplog):
    monkeypatch.setenv("DUMMY_VISIBEL_DEVICES", "0")
    monkeypatch.setattr("vllm_ext_dummy_platform.my_dummy_platform.MAX_TOKENS", 40)

    with LLM(random_llama, platform="dummy") as llm:
        config = llm.llm_engine.vllm_config
        (output,) = llm.generate([[7] * 30], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
        with pytest.raises(InvalidRequest, match="the dummy device reads at most|can generate none"):
            llm.generate([[7] * 60], SamplingParams())

    assert config.model_config.max_model_len == 40
    assert config.additional_config["dummy_tokens"] == 40
    assert len(output.outputs[0].token_ids) == 10
    assert "unknown variables of the dummy device: ['DUMMY_VISIBEL_DEVICES']" in caplog.text


def test_a_refusal_of_the_platform_is_the_answer_to_the_request(project, random_llama, monkeypatch):
    from vllm_ext_dummy_platform.my_dummy_platform import MyDummyPlatform

    def refuse(processed_inputs, params):
        raise ValueError(f"{processed_inputs['prompt']!r} in {processed_inputs['prompt_token_ids'][:2]}")

    monkeypatch.setattr(MyDummyPlatform, "validate_request", staticmethod(refuse))

    async def ask(engine: AsyncLLM) -> None:
        async for _ in engine.generate({"prompt_token_ids": [5, 6, 7]}):
            pytest.fail("it was served")

    async def main() -> None:
        async with AsyncLLM(random_llama, platform="dummy") as engine:
            with pytest.raises(InvalidRequest, match=r"platform 'dummy' refuses the request: None in \[5, 6\]"):
                await ask(engine)

    asyncio.run(main())
