"""The in-tree worker on its platform's device, or the reason why it cannot be there."""

from __future__ import annotations

import logging

import pytest
import torch
from support.device import make_dispatcher
from support.families import NATIVE, write_model
from support.reference import assert_equal_tokens, greedy_reference

from vllm_ext import LLM, SamplingParams, _custom_ops
from vllm_ext.contracts.attention import AttentionBackend
from vllm_ext.errors import ConfigError, ContractError, EngineError, PluginLoadError
from vllm_ext.platforms.cpu import CpuPlatform

PLATFORM = """
from vllm_ext import PlatformEnum
from vllm_ext.platforms.cpu import CpuPlatform


def register():
    return "npu.Npu"


class Npu(CpuPlatform):
    _enum = PlatformEnum.OOT
"""


@pytest.fixture
def install(plugins):
    """Installs platform ``npu``, which is that of the processor with other members."""

    def install(members: str) -> None:
        plugins.distribution("npu", {"vllm.platform_plugins": ["npu = npu:register"]}, {"npu.py": PLATFORM + members})

    return install


BARE = """
from vllm_ext import Platform, PlatformEnum
from vllm_ext.platforms.cpu import CpuPlatform


def register():
    return "npu.Npu"


class Npu(Platform):
    _enum = PlatformEnum.OOT
    device_type = "cpu"
    device_name = "card"
    get_device_name = CpuPlatform.get_device_name
    get_device_total_memory = CpuPlatform.get_device_total_memory
    get_attn_backend_cls = CpuPlatform.get_attn_backend_cls
    check_and_update_config = CpuPlatform.check_and_update_config
"""
BOTH = "manual_seed_all, get_current_memory_usage"


@pytest.mark.parametrize(
    "members, missing",
    [
        ("", BOTH),
        ("    manual_seed_all = CpuPlatform.manual_seed_all\n", "get_current_memory_usage"),
        ("    @classmethod\n    def seed_everything(cls, seed=None): ...\n", "get_current_memory_usage"),
        ("    device_type = 'privateuseone'\n", f"set_device, {BOTH}"),
    ],
)
def test_all_that_the_worker_needs_of_its_platform_is_missed_before_the_device_is_touched(
    plugins, random_llama, members, missing
):
    plugins.distribution("npu", {"vllm.platform_plugins": ["npu = npu:register"]}, {"npu.py": BARE + members})

    with pytest.raises(ContractError) as caught:
        LLM(random_llama, platform="npu")

    asks = "which its worker vllm_ext.worker.worker.Worker asks for"
    assert str(caught.value) == f"platform 'npu' (npu.Npu) does not implement {missing}, {asks}"


def test_what_a_workers_own_methods_do_not_ask_for_may_be_missing(plugins, random_llama):
    worker = """
from vllm_ext.worker.worker import Worker


class NpuWorker(Worker):
    def determine_available_memory(self):
        return 1 << 20
"""
    members = (
        "    manual_seed_all = CpuPlatform.manual_seed_all\n"
        "    @classmethod\n    def check_and_update_config(cls, vllm_config):\n"
        "        vllm_config.parallel_config.worker_cls = 'npu_worker.NpuWorker'\n"
    )
    code = {"npu.py": BARE + members, "npu_worker.py": worker}
    plugins.distribution("npu", {"vllm.platform_plugins": ["npu = npu:register"]}, code)

    with LLM(random_llama, platform="npu") as llm:
        assert llm.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=2))[0].finished


@pytest.mark.skipif(
    torch._C._get_privateuse1_backend_name() != "privateuseone", reason="this torch has a backend out of tree"
)
def test_a_platform_for_a_backend_that_this_torch_lacks_is_told_so_when_its_device_is_needed(install, random_llama):
    install("    device_type = device_name = 'privateuseone'\n")

    with pytest.raises(
        EngineError,
        match=r"platform 'npu' has device_type 'privateuseone', and torch .* cannot use privateuseone:0: .*"
        r"The platform's package has to bring a backend for it",
    ):
        LLM(random_llama, platform="npu")


def test_one_with_a_worker_of_its_own_can_be_anywhere(install, random_llama, plugins):
    plugins.project("vllm_ext_dummy_platform")
    install(
        "    device_name = 'privateuseone'\n"
        "    @classmethod\n    def check_and_update_config(cls, vllm_config):\n"
        "        vllm_config.parallel_config.worker_cls = 'vllm_ext_dummy_platform.my_dummy_worker.MyDummyWorker'\n"
    )

    with LLM(random_llama, platform="npu") as llm:
        assert llm.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=2))[0].finished


def test_a_dtype_that_this_machines_device_lacks_ends_the_start(install, random_llama):
    install(
        "    @classmethod\n    def check_if_supports_dtype(cls, dtype):\n"
        "        raise ValueError(f'{dtype} takes a newer device')\n"
    )

    refusal = r"^platform 'npu' of npu 0\.1 \(npu\.Npu\) refuses the configuration: torch.float32 takes a newer device$"
    with pytest.raises(ConfigError, match=refusal):
        LLM(random_llama, platform="npu", dtype="float32")


def test_the_log_has_the_device_of_the_machine(install, random_llama, monkeypatch, caplog):
    install("    device_control_env_var = 'NPU_VISIBLE'\n")
    monkeypatch.setenv("NPU_VISIBLE", "5,6")

    with caplog.at_level(logging.INFO), LLM(random_llama, platform="npu"):
        assert f"worker 0 uses device 5 of the machine, {CpuPlatform.get_device_name()}" in caplog.text


def test_kernels_that_cannot_be_imported_name_the_platform(install, random_llama):
    install("    @classmethod\n    def import_kernels(cls):\n        import npu_kernels\n")

    with pytest.raises(
        PluginLoadError, match="platform 'npu' of npu 0.1 .*npu.Npu.* failed: ModuleNotFoundError: .*npu_kernels"
    ):
        LLM(random_llama, platform="npu")


@pytest.mark.parametrize("settings, expected", [({}, 64), ({"engine__block_size": 32}, None)])
def test_blocks_get_a_size_that_the_models_backend_supports_unless_the_user_has_set_another(
    random_llama, monkeypatch, settings, expected
):
    dispatcher = make_dispatcher(random_llama, **settings)
    monkeypatch.setattr(
        AttentionBackend, "supports_block_size", classmethod(lambda cls, size: size is None or size % 64 == 0)
    )

    if expected is None:
        with pytest.raises(ConfigError, match="block size 32 is not supported"):
            dispatcher.executor_factory()
        return
    executor = dispatcher.executor_factory()
    (change,) = [change for change in dispatcher.changes if change.path == "cache_config.block_size"]
    (spec,) = {spec.block_size for spec in executor.get_kv_cache_specs()[0].values()}
    executor.shutdown()

    assert spec == expected
    assert (change.before, change.after, change.hook) == (16, 64, "update_block_size_for_backend")


@pytest.mark.parametrize("backend", ["SDPA", "CPU_ATTN"])
def test_a_layer_keeps_its_window_where_the_platform_takes_one_group_for_all(install, tmp_path, backend):
    if backend == "CPU_ATTN" and _custom_ops.why_missing() is not None:
        pytest.skip("there are no compiled kernels")
    install("    @classmethod\n    def support_hybrid_kv_cache(cls):\n        return False\n")
    model = write_model(tmp_path, NATIVE["qwen2, window in two layers"])
    prompt = list(range(5, 45))
    (reference,) = greedy_reference(model, [prompt], 12)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

    with LLM(model, platform="npu", dtype="float32", overrides={"attention.backend": backend}) as llm:
        (output,) = llm.generate([prompt], params)
        (group,) = llm.llm_engine.engine_core.kv_cache_config.kv_cache_groups

    assert len(group.layer_names) == 3
    assert_equal_tokens([output.outputs[0].token_ids], [reference])


def test_the_default_device_of_torch_which_is_the_programs_own_changes_nothing(random_llama):
    drawing = SamplingParams(temperature=0.9, top_p=0.9, logprobs=2, max_tokens=6)

    def generate() -> list[list[int]]:
        with LLM(random_llama, dtype="float32", seed=1) as llm:
            params = [SamplingParams(temperature=0, max_tokens=6), drawing]
            return [output.outputs[0].token_ids for output in llm.generate([[1, 2, 3], [4, 5]], params)]

    usual = generate()
    # One where nothing can be stored: whatever were put there would be missed.
    torch.set_default_device("meta")
    try:
        assert generate() == usual
    finally:
        torch.set_default_device(None)
