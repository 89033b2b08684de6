"""From settings and config.json to a VllmConfig: dtype and length limits."""

from pathlib import Path

import pytest
import torch

from vllm_ext import Platform, PlatformEnum
from vllm_ext.config.schema import EngineSettings, Settings
from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.dispatch.engine_config import build_vllm_config, resolve_dtype, resolve_max_model_len
from vllm_ext.errors import CheckpointError, ConfigError


class Device(Platform):
    _enum = PlatformEnum.OOT
    device_name = "npu"
    device_type = "cpu"

    @property
    def supported_dtypes(self):
        return [torch.bfloat16, torch.float32]

    @classmethod
    def check_max_model_len(cls, max_model_len):
        return min(max_model_len, 1000)


def hf(**values):
    return HFConfig(values, Path("config.json"))


@pytest.mark.parametrize(
    "wanted, config, dtype",
    [
        ("float32", {"dtype": "bfloat16"}, torch.float32),
        ("auto", {"dtype": "bfloat16"}, torch.bfloat16),
        ("auto", {"torch_dtype": "torch.float32"}, torch.float32),
        ("auto", {}, torch.float32),
    ],
)
def test_dtype_is_the_settings_or_else_the_checkpoints_own(wanted, config, dtype):
    assert resolve_dtype(wanted, hf(**config), Device()) is dtype


def test_a_checkpoint_dtype_that_the_platform_lacks_becomes_the_platforms_first():
    assert resolve_dtype("auto", hf(dtype="float16"), Device()) is torch.bfloat16


def test_a_named_dtype_that_the_platform_lacks_is_refused():
    with pytest.raises(ConfigError, match="'float16', which platform 'npu' does not support; supported: auto, bf"):
        resolve_dtype("float16", hf(), Device())


def test_a_checkpoint_dtype_that_is_none_is_refused():
    with pytest.raises(CheckpointError, match=r"config\.json: dtype 'int8' is not a floating-point dtype"):
        resolve_dtype("auto", hf(dtype="int8"), Device())


@pytest.mark.parametrize("wanted, own, limit", [(None, 512, 512), (99, 512, 99), (None, 5000, 1000), (300, None, 300)])
def test_the_length_limit(wanted, own, limit):
    config = hf() if own is None else hf(max_position_embeddings=own)

    assert resolve_max_model_len(EngineSettings(max_model_len=wanted), config, Device()) == limit


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"n_positions": 256}, 256),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic", "factor": 2.5}}, 250),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 400),
        (
            {
                "max_position_embeddings": 400,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100},
            },
            400,
        ),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 100),
        (
            {"model_type": "gemma3_text", "max_position_embeddings": 100}
            | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            100,
        ),
    ],
)
def test_the_models_own_limit_is_what_its_rope_is_stretched_to(config, limit):
    assert resolve_max_model_len(EngineSettings(), hf(**config), Device()) == limit


def test_a_length_limit_above_the_models_positions_is_refused():
    with pytest.raises(ConfigError, match="max_model_len is 600, above the 512 positions of the model"):
        resolve_max_model_len(EngineSettings(max_model_len=600), hf(max_position_embeddings=512), Device())


def test_settings_reach_the_sub_configs_under_vllms_names():
    settings = Settings(
        engine=EngineSettings(
            block_size=32,
            max_num_seqs=3,
            max_num_batched_tokens=7,
            kv_cache_memory=1 << 20,
            enable_prefix_caching=False,
            scheduling_policy="priority",
            scheduler_cls="acme.Scheduler",
            quantization="int8",
            load_format="dummy",
            tokenizer_mode="hf",
            seed=5,
        ),
        custom_ops=["-rms_norm"],
    )

    config = build_vllm_config(settings, Device())

    assert (config.cache_config.block_size, config.cache_config.kv_cache_memory_bytes) == (32, 1 << 20)
    assert (config.scheduler_config.max_num_seqs, config.scheduler_config.max_num_batched_tokens) == (3, 7)
    assert (config.cache_config.enable_prefix_caching, config.scheduler_config.policy) == (False, "priority")
    assert (config.model_config.seed, config.compilation_config.custom_ops) == (5, ["-rms_norm"])
    assert config.parallel_config.worker_cls == "auto"
    assert config.scheduler_config.scheduler_cls == "acme.Scheduler"
    assert (config.load_config.load_format, config.model_config.tokenizer_mode) == ("dummy", "hf")
    assert (config.model_config.quantization, config.quant_config.get_name()) == ("int8", "int8")
