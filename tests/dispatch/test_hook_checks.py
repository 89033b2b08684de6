"""What a platform's hook sets is checked as a setting is, and refused with the plugin, the hook, field and value."""

from __future__ import annotations

import re

import pytest
from support.device import make_dispatcher
from support.hook_platform import install_platform

from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.errors import ContractError

WHOLE = "which takes a whole number of at least 1"


@pytest.fixture
def start(plugins, random_llama):
    """A dispatcher on the platform ``npu`` with such a hook."""

    def start(hook, **settings):
        install_platform(plugins, hook)
        return make_dispatcher(random_llama, platform__driver="npu", **settings)

    return start


@pytest.mark.parametrize(
    ("field", "value", "takes"),
    [
        ("scheduler_config.max_num_batched_tokens", "0", WHOLE),
        ("scheduler_config.max_num_seqs", "0", WHOLE),
        ("scheduler_config.max_num_seqs", "-4", WHOLE),
        ("scheduler_config.max_num_seqs", "'8'", WHOLE),
        ("cache_config.block_size", "0", WHOLE),
        ("cache_config.block_size", "None", WHOLE),
        ("cache_config.block_size", "16.0", WHOLE),
        ("cache_config.kv_cache_memory_bytes", "-1", f"{WHOLE}, or None"),
        ("cache_config.enable_prefix_caching", "'no'", "which takes true or false"),
        ("model_config.seed", "-1", "which takes a whole number from 0 to 9223372036854775807"),
        ("model_config.max_model_len", "None", WHOLE),
        ("model_config.max_model_len", "0", WHOLE),
        ("parallel_config.tensor_parallel_size", "True", WHOLE),
        ("scheduler_config.policy", "'sjf'", "which takes one of fcfs, priority"),
        (
            "compilation_config.cudagraph_mode",
            "'PIECEWIESE'",
            "which takes one of NONE, PIECEWISE, FULL, FULL_DECODE_ONLY, FULL_AND_PIECEWISE (did you mean 'PIECEWISE'"
            "?)",
        ),
    ],
)
def test_a_value_that_no_setting_could_have_is_refused(start, field, value, takes):
    with pytest.raises(ContractError) as caught:
        start(f"vllm_config.{field} = {value}")

    assert str(caught.value) == f"platform plugin 'npu': check_and_update_config() sets {field} to {value}, {takes}"
    assert caught.value.plugin == "npu"


def test_all_that_is_wrong_is_said_at_once(start):
    with pytest.raises(
        ContractError, match=r"block_size to 0, which .*; check_and_.*\(\) sets scheduler_config.max_num_s"
    ):
        start("vllm_config.cache_config.block_size = 0; vllm_config.scheduler_config.max_num_seqs = 0")


@pytest.mark.parametrize("value", ["'bfloat16'", "torch.int8", "torch.float64"])
def test_a_dtype_that_is_none_of_the_platforms_is_refused(start, value):
    with pytest.raises(
        ContractError,
        match=rf"sets model_config.dtype to {re.escape(value)}, which takes a torch.dtype that the platform supports: "
        r"torch.float32, torch.bfloat16, torch.float16",
    ):
        start(f"vllm_config.model_config.dtype = {value}")


def test_more_positions_than_the_model_has_are_refused(start):
    with pytest.raises(
        ContractError, match=r"max_model_len to 100000, which takes at most the \d+ positions of the mod"
    ):
        start("vllm_config.model_config.max_model_len = 100000")


def test_what_the_last_hook_leaves_is_what_counts(plugins, random_llama):
    first = "if vllm_config.scheduler_config.max_num_seqs == 64: vllm_config.scheduler_config.max_num_seqs = 0"
    last = "vllm_config.scheduler_config.max_num_seqs = 4"
    install_platform(plugins, last, apply_config_platform_defaults=first)

    dispatcher = make_dispatcher(random_llama, platform__driver="npu")

    assert dispatcher.vllm_config.scheduler_config.max_num_seqs == 4


def test_a_graph_mode_may_be_a_member_of_an_enumeration(start):
    mode = "import enum; vllm_config.compilation_config.cudagraph_mode = enum.Enum('CUDAGraphMode', 'NONE FULL').FULL"

    assert start(mode).vllm_config.compilation_config.cudagraph_mode == "FULL"


def test_what_the_engine_sets_after_the_first_hook_is_not_taken_back(plugins, random_llama):
    first = "vllm_config.compilation_config.cudagraph_mode = 'FULL_DECODE_ONLY'"
    graphs = "\nNpu.support_static_graph_mode = classmethod(lambda cls: True)\n"
    last = "vllm_config.additional_config['seen'] = vllm_config.compilation_config.cudagraph_mode"
    install_platform(plugins, last, graphs, apply_config_platform_defaults=first)

    config = make_dispatcher(random_llama, platform__driver="npu").vllm_config

    assert config.compilation_config.cudagraph_mode == config.additional_config["seen"]


def test_a_number_of_numpy_becomes_one_of_python(start):
    config = start("import numpy; vllm_config.scheduler_config.max_num_seqs = numpy.int64(8)").vllm_config

    assert type(config.scheduler_config.max_num_seqs) is int


def test_a_block_size_that_is_chosen_for_the_model_is_checked_as_well(plugins, random_llama):
    install_platform(plugins, update_block_size_for_backend="vllm_config.cache_config.block_size = 0")
    dispatcher = make_dispatcher(random_llama, platform__driver="npu")

    with pytest.raises(
        ContractError, match=r"'npu': update_block_size_for_backend\(\) sets cache_config.block_size to 0"
    ):
        EngineCore(dispatcher)
