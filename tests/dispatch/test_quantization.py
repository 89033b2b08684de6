"""What a quantization method says of itself is asked before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.device import make_dispatcher
from support.fake_engine import FakePlatform
from support.hook_platform import install_platform

from vllm_ext import QuantizationConfig, register_quantization_config
from vllm_ext.contracts.device import DeviceCapability
from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.dispatch.quantization import make_quant_config
from vllm_ext.errors import ConfigError, ContractError, PluginNotFound
from vllm_ext.registry.quantization import QUANTIZATION_METHODS


class Device(FakePlatform):
    capability: DeviceCapability | None = DeviceCapability(7, 5)

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        return cls.capability


class Grid(QuantizationConfig):
    def __init__(self, step: float = 0.5) -> None:
        self.step = step

    def get_name(self) -> str:
        return "grid"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        return ["grid.json", "older_grid.json"]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Grid:
        return cls(config["step"])

    def get_quant_method(self, layer, prefix):
        return None


@pytest.fixture(autouse=True)
def registered():
    before = QUANTIZATION_METHODS.snapshot()
    register_quantization_config("grid")(Grid)
    yield
    QUANTIZATION_METHODS.restore(before)


def make(directory: Path, dtype: torch.dtype = torch.float32, platform: FakePlatform | None = None) -> Any:
    return make_quant_config("grid", HFConfig({}, directory / "config.json"), dtype, platform or Device())


def test_a_dtype_that_the_method_does_not_compute_in_is_refused(tmp_path):
    message = r"quantization 'grid' does not compute in float16; it supports: bfloat16, float32\. Set engine\.dtype"
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, torch.float16)


@pytest.mark.parametrize("capability", [DeviceCapability(7, 5), DeviceCapability(8, 0), None])
def test_a_device_with_the_capability_or_without_the_concept_is_taken(tmp_path, capability):
    platform = type("Other", (Device,), {"capability": capability})()

    assert make(tmp_path, platform=platform).step == 0.5


def test_a_device_below_the_lowest_capability_is_refused(tmp_path):
    older = type("Older", (Device,), {"capability": DeviceCapability(7, 0)})()

    with pytest.raises(ConfigError, match=r"'grid' needs compute capability 7\.5, and platform 'fake' has 7\.0"):
        make(tmp_path, platform=older)


@pytest.mark.parametrize(
    ("files", "step"),
    [
        ({}, 0.5),
        ({"older_grid.json": 0.25}, 0.25),
        ({"grid.json": 0.125, "older_grid.json": 0.25}, 0.125),
    ],
)
def test_a_file_of_the_methods_own_describes_the_checkpoint(tmp_path, files, step):
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps({"step": value}))

    assert make(tmp_path).step == step


def test_all_methods_that_its_class_lacks_are_named(tmp_path):
    class Half(QuantizationConfig):
        def get_name(self) -> str:
            return "half"

    register_quantization_config("half")(Half)
    lacking = r"quantization 'half': .*Half does not implement from_config, get_quant_method, get_supported_act_dtypes$"

    with pytest.raises(ContractError, match=lacking):
        make_quant_config("half", HFConfig({}, tmp_path / "config.json"), torch.float32, Device())


class TestHooksOfThePlatform:
    """The method is made of what the platform's hooks have left."""

    def start(self, plugins, model, hook, **settings):
        install_platform(plugins, hook)
        return make_dispatcher(model, platform__driver="npu", **settings).vllm_config

    def test_a_method_that_a_hook_names_is_the_one_that_is_made(self, plugins, random_llama):
        config = self.start(plugins, random_llama, "vllm_config.model_config.quantization = 'grid'")

        assert isinstance(config.quant_config, Grid)

    def test_a_name_that_nobody_has_registered_is_refused_with_the_hook(self, plugins, random_llama):
        with pytest.raises(PluginNotFound) as caught:
            self.start(plugins, random_llama, "vllm_config.model_config.quantization = 'int9'")

        assert "no quantization method 'int9' is registered (did you mean 'int8'?)" in str(caught.value)
        assert "platform plugin 'npu': model_config.quantization, set by check_and_update_config()," in str(
            caught.value
        )

    def test_a_checkpoint_that_a_hook_calls_quantized_is_read_as_such(self, plugins, random_llama):
        stored = "{'quant_method': 'grid', 'step': 0.25}"
        hook = f"vllm_config.model_config.hf_config.quantization_config = {stored}"

        config = self.start(plugins, random_llama, hook)

        assert (config.model_config.quantization, config.quant_config.step) == ("grid", 0.25)

    def test_a_dtype_that_a_hook_sets_is_checked_against_the_method(self, plugins, random_llama):
        hook = "vllm_config.model_config.dtype = torch.float16"

        with pytest.raises(ConfigError, match="quantization 'grid' does not compute in float16"):
            self.start(plugins, random_llama, hook, engine__quantization="grid")

    def test_a_checkpoint_that_is_quantized_cannot_be_used_without(self, plugins, random_llama):
        # The first hook calls the checkpoint quantized, the second will have none of it.
        first = (
            "vllm_config.model_config.hf_config.quantization_config = {'quant_method': 'grid', 'step': 1}\n"
            "vllm_config.model_config.quantization = 'grid'"
        )
        install_platform(plugins, "vllm_config.model_config.quantization = None", apply_config_platform_defaults=first)

        with pytest.raises(
            ConfigError, match=r"set by check_and_update_config\(\), is None, and the checkpoint is quant"
        ):
            make_dispatcher(random_llama, platform__driver="npu")

    def test_a_method_that_the_user_named_stays(self, plugins, random_llama, caplog):
        hook = "vllm_config.model_config.quantization = 'int8'"

        config = self.start(plugins, random_llama, hook, engine__quantization="grid")

        assert (config.model_config.quantization, type(config.quant_config)) == ("grid", Grid)
        assert (
            "engine.quantization (command line (test:engine.quantization)) names 'grid', which is used" in caplog.text
        )
        assert "should set it only where it is None" in caplog.text

    def test_a_configuration_that_a_hook_made_itself_stays(self, plugins, random_llama):
        hook = "from vllm_ext.layers.quantization.int8 import Int8Config\nvllm_config.quant_config = Int8Config()"

        config = self.start(plugins, random_llama, f"{hook}\nvllm_config.model_config.quantization = 'grid'")

        assert type(config.quant_config).__name__ == "Int8Config"
