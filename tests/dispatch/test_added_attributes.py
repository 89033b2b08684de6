"""What a platform's hook sets although the configuration has no such field: said, and refused where it matters."""

from __future__ import annotations

import pytest
from support.device import make_dispatcher
from support.hook_platform import install_platform

from vllm_ext.errors import ConfigError

NOT_HERE = "sets what the configuration does not have, and vllm-ext does not act on it: "
WHOLE_PROMPTS = "vllm_config.scheduler_config.enable_chunked_prefill = False"


@pytest.fixture
def start(plugins, random_llama):
    """A dispatcher on the platform ``npu`` with such hooks."""

    def start(hook="", extra="", **methods):
        install_platform(plugins, hook, extra, **methods)
        return make_dispatcher(random_llama, platform__driver="npu")

    return start


def test_a_misspelt_field_is_said_with_the_right_name(start, caplog):
    start("vllm_config.scheduler_config.max_num_batched_token = 32")

    assert caplog.messages == [
        f"platform plugin 'npu': check_and_update_config() {NOT_HERE}scheduler_config.max_num_batched_token (did you "
        "mean 'max_num_batched_tokens'?)"
    ]


def test_fields_that_only_vllm_has_are_said_in_one_line_and_accepted(start, caplog):
    start(
        "vllm_config.compilation_config.mode = 3\nvllm_config.cache_config.cache_dtype = 'fp8'\n"
        "vllm_config.npu = object()"
    )

    assert caplog.messages == [
        f"platform plugin 'npu': check_and_update_config() {NOT_HERE}cache_config.cache_dtype, "
        "compilation_config.mode, npu"
    ]


def test_each_hook_is_named_with_what_it_sets(start, caplog):
    start("vllm_config.compilation_config.mode = 3", apply_config_platform_defaults="vllm_config.cache_config.a = 1")

    assert caplog.messages == [
        f"platform plugin 'npu': apply_config_platform_defaults() {NOT_HERE}cache_config.a",
        f"platform plugin 'npu': check_and_update_config() {NOT_HERE}compilation_config.mode",
    ]


@pytest.mark.parametrize(
    "assignment",
    [
        "cache_config.cache_dtype = 'auto'",
        "scheduler_config.enable_chunked_prefill = True",
        "scheduler_config.async_scheduling = False",
        "parallel_config.disable_custom_all_reduce = True",
        "lora_config = None",
        "parallel_config.enable_dbo = False",
        "compilation_config.mode = 0",
        "_npu_state = 3",
    ],
)
def test_what_asks_for_nothing_else_than_there_is_goes_without_a_word(start, caplog, assignment):
    start(f"vllm_config.{assignment}")

    assert caplog.messages == []


def test_what_only_vllm_can_be_asked_for_can_be_read(start, caplog):
    start(
        "parallel, model = vllm_config.parallel_config, vllm_config.model_config\n"
        "if parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1 or model.use_mla:\n"
        "    raise ValueError('not on this device')\n"
        "if vllm_config.speculative_config or vllm_config.lora_config or vllm_config.kv_transfer_config:\n"
        "    raise ValueError('not on this device')\n"
        "parallel.enable_dbo = model.get_num_kv_heads(parallel) > 2"
    )

    assert caplog.messages == []


@pytest.mark.parametrize("name", ["enable_chunked_prefill", "chunked_prefill_enabled"])
def test_a_device_that_takes_whole_prompts_only_is_refused(start, name):
    with pytest.raises(ConfigError) as caught:
        start(f"vllm_config.scheduler_config.{name} = False")

    assert str(caught.value) == (
        f"platform plugin 'npu': check_and_update_config() sets scheduler_config.{name} to False, and the scheduler "
        "computes long prompts in parts; a platform whose worker takes whole prompts only names a scheduler of its own "
        "in scheduler_config.scheduler_cls"
    )


def test_with_a_scheduler_of_its_own_it_is_that_schedulers_business(start, caplog):
    own = "from vllm_ext.engine.scheduling.scheduler import Scheduler\nclass Whole(Scheduler): pass\n"
    start(f"{WHOLE_PROMPTS}; vllm_config.scheduler_config.scheduler_cls = 'acme_npu.Whole'", own)

    assert f"{NOT_HERE}scheduler_config.enable_chunked_prefill" in caplog.text


def test_another_attention_window_than_the_models_is_refused(start):
    with pytest.raises(ConfigError, match=r"sets cache_config.sliding_window to 8, and attention windows are those of"):
        start("vllm_config.cache_config.sliding_window = 8")


def test_what_the_first_hook_added_is_there_in_the_second_run_of_the_other(start, caplog):
    start("assert vllm_config.npu == [1]", apply_config_platform_defaults="vllm_config.npu = [1]")

    assert "second run" not in caplog.text


def test_what_a_hook_added_is_recorded_as_no_field(start):
    (change,) = [change for change in start("vllm_config.compilation_config.mode = 3").changes if not change.is_field]

    assert (change.path, change.after, change.hook) == ("compilation_config.mode", 3, "check_and_update_config")
