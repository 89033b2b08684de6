"""The order of a platform's hooks and of a worker's methods in a real engine is vLLM's."""

from __future__ import annotations

import pytest

from vllm_ext import LLM, SamplingParams

PLUGIN = """
from vllm_ext import PlatformEnum
from vllm_ext.contracts.platform_check import CALLS
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.platforms.cpu import CpuPlatform
from vllm_ext.worker.worker import Worker

calls = []


def register():
    calls.append("register")
    return "recorder.Recorder"


def general():
    calls.append("general plugin")


class Recorder(CpuPlatform):
    _enum = PlatformEnum.OOT

    @classmethod
    def check_and_update_config(cls, vllm_config):
        calls.append("check_and_update_config")
        vllm_config.parallel_config.worker_cls = "recorder.RecordingWorker"

    def get_max_output_tokens(self, prompt_len):
        calls.append("get_max_output_tokens")
        return super().get_max_output_tokens(prompt_len)


class RecordingWorker(Worker):
    def __init__(self, **kwargs):
        calls.append("worker")
        super().__init__(**kwargs)


def record(cls, base, name, wrap):
    inner = getattr(cls, name)

    def recorded(*args, **kwargs):
        calls.append(name)
        return inner(*args[1:], **kwargs) if wrap is classmethod else inner(*args, **kwargs)

    setattr(cls, name, wrap(recorded))


for name in set(CALLS) - {"check_and_update_config", "is_sleep_mode_available", "get_max_output_tokens"}:
    record(Recorder, CpuPlatform, name, classmethod)
for name in vars(WorkerBase):
    if name != "__init__" and callable(getattr(WorkerBase, name)) and not name.startswith("_"):
        record(RecordingWorker, Worker, name, lambda function: function)
"""

START = """
register, general plugin,
log_warnings, pre_register_and_update, validate_environ, check_max_model_len,
apply_config_platform_defaults, support_static_graph_mode, verify_model_arch,
check_and_update_config, support_hybrid_kv_cache,
apply_config_platform_defaults, check_and_update_config,
import_kernels, worker, init_device, load_model, update_block_size_for_backend,
register_custom_kv_cache_specs, get_kv_cache_spec, get_supported_kv_cache_layouts, set_kv_cache_layout,
determine_available_memory, initialize_from_config, get_static_graph_wrapper_cls, initialize_cache,
compile_or_warm_up_model,
get_supported_tasks, get_supported_sampling_params
"""
"""vLLM's order, as far as this engine has it; the hooks that change the configuration run twice. What is asked of the
device in between is left out."""

DEVICE = {
    "get_device_name", "get_device_total_memory", "get_device_capability", "get_current_memory_usage", "set_device",
    "logical_device_id_to_visible_device_id", "visible_device_id_to_physical_device_id", "check_if_supports_dtype",
    "device_control_id_to_physical_device_id", "device_id_to_physical_device_id", "manual_seed_all",
    "seed_everything", "inference_mode", "is_pin_memory_available", "get_device_communicator_cls",
    "get_unquantized_linear_method_cls", "set_additional_forward_context",
}  # fmt: skip


def words(text: str) -> list[str]:
    return [word.strip() for word in text.replace("\n", " ").split(",") if word.strip()]


@pytest.fixture
def calls(plugins):
    entry_points = {
        "vllm.platform_plugins": ["recorder = recorder:register"],
        "vllm.general_plugins": ["recorder = recorder:general"],
    }
    plugins.distribution("recorder", entry_points, {"recorder.py": PLUGIN})
    import recorder

    return recorder.calls


def shown(calls: list[str]) -> list[str]:
    return [call for call in calls if call not in DEVICE]


def test_start_up(calls, random_llama):
    with LLM(random_llama, platform="recorder"):
        assert shown(calls) == words(START)


def test_the_device_is_there_before_anything_is_put_on_it(calls, random_llama):
    with LLM(random_llama, platform="recorder"):
        started = calls[calls.index("init_device") : calls.index("load_model")]

    assert [call for call in started if call in ("set_device", "check_if_supports_dtype", "manual_seed_all")] == [
        "set_device",
        "check_if_supports_dtype",
        "manual_seed_all",
    ]


def test_a_cache_that_is_too_small_is_announced_before_it_is_allocated(calls, random_llama):
    with LLM(random_llama, platform="recorder", kv_cache_memory=100_000):
        start = shown(calls)

    index = start.index("update_max_model_len")
    assert start[index - 1 : index + 2] == [
        "determine_available_memory",
        "update_max_model_len",
        "initialize_from_config",
    ]


def test_requests_and_steps(calls, random_llama):
    with LLM(random_llama, platform="recorder") as llm:
        calls.clear()
        llm.generate([[1, 2, 3], [4, 5]], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
        # The last step has no tokens: it tells who has ended.
        assert shown(calls) == words(
            "get_max_output_tokens, validate_request, get_max_output_tokens, validate_request, "
            "execute_model, sample_tokens, execute_model, sample_tokens, execute_model"
        )
        assert calls.count("set_additional_forward_context") == 2


def test_between_steps_and_at_the_end(calls, random_llama, tmp_path):
    with LLM(random_llama, platform="recorder", overrides={"profiler.torch_profiler_dir": str(tmp_path)}) as llm:
        calls.clear()
        llm.reset_prefix_cache()
        llm.start_profile()
        llm.stop_profile()
        llm.apply_model(str)

    assert shown(calls) == words(
        "reset_prefix_cache, profile, synchronize_device, profile, apply_model, get_model, clear_graphs, shutdown"
    )


def test_every_call_has_the_form_that_platforms_are_checked_for(calls, random_llama, monkeypatch):
    import recorder

    from vllm_ext.contracts.platform_check import CALLS

    wrong = {}

    def checked(name, inner, num_positional, keywords):
        def called(*args, **kwargs):
            if (len(args), set(kwargs)) != (num_positional, keywords):
                wrong[name] = (args, kwargs)
            return inner(*args, **kwargs)

        return staticmethod(called)

    for name, (positional, keywords) in CALLS.items():
        inner = getattr(recorder.Recorder(), name)
        monkeypatch.setattr(recorder.Recorder, name, checked(name, inner, len(positional), set(keywords)))

    with LLM(random_llama, platform="recorder") as llm:
        llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=2))

    assert wrong == {}
