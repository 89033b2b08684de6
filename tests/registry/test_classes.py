"""Registries of classes by name: quantization methods, load formats, tokenizer modes."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from vllm_ext import (
    BaseModelLoader,
    QuantizationConfig,
    TokenizerRegistry,
    register_model_loader,
    register_quantization_config,
)
from vllm_ext.contracts.model_loader import get_model_loader
from vllm_ext.contracts.quantization import get_quantization_config
from vllm_ext.contracts.vllm_config import LoadConfig
from vllm_ext.errors import ContractError, PluginLoadError, PluginNotFound, RegistrationError
from vllm_ext.registry.model_loaders import MODEL_LOADERS
from vllm_ext.registry.owners import loading
from vllm_ext.registry.quantization import QUANTIZATION_METHODS


class Quantization(QuantizationConfig):
    def get_name(self):
        return "mine"

    def get_supported_act_dtypes(self):
        return []

    @classmethod
    def from_config(cls, config):
        return cls()

    def get_quant_method(self, layer, prefix):
        return None


class Loader(BaseModelLoader):
    def download_model(self, model_config):
        """Nothing to do."""

    def load_weights(self, model, model_config):
        """Nothing to do."""


class Tokenizer:
    pass


REGISTER = {
    "quantization method": (
        lambda name: register_quantization_config(name)(Quantization), lambda name: get_quantization_config(name)
    ),
    "load format": (
        lambda name: register_model_loader(name)(Loader),
        lambda name: type(get_model_loader(LoadConfig(load_format=name))),
    ),
    "tokenizer mode": (
        lambda name: TokenizerRegistry.register(name, __name__, "Tokenizer"),
        lambda name: TokenizerRegistry.load_tokenizer_cls(name),
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("what", REGISTER)
DECORATORS = pytest.mark.parametrize(
    ("decorator", "base", "registry"),
    [
        (register_quantization_config, QuantizationConfig, QUANTIZATION_METHODS),
        (register_model_loader, BaseModelLoader, MODEL_LOADERS),
    ],
)


@EACH
def test_what_is_registered_is_found_by_its_name(what):
    register, load = REGISTER[what]
    register("mine")

    assert load("mine").__module__ == __name__


@EACH
def test_an_unknown_name_is_answered_with_what_exists(what):
    register, load = REGISTER[what]
    register("npu_mine")

    with pytest.raises(PluginNotFound, match=rf"no {what} 'npu_mind' is registered \(did you mean 'npu_mine'\?\)") as e:
        load("npu_mind")

    assert "registered: " in str(e.value)
    assert e.value.exit_code == 2


@EACH
def test_the_same_owner_registers_again_without_a_word_and_another_is_reported_with_both(what, caplog):
    register, _ = REGISTER[what]
    other = {"load format": "dummy", "quantization method": "int8", "tokenizer mode": "hf"}[what]

    with caplog.at_level(logging.WARNING), loading("plugin", "dist"):
        register("mine")
        register("mine")
        assert caplog.messages == []
        register(other)

    assert caplog.messages == [
        f"{what} {other!r}: plugin 'plugin' of dist replaces the registration of vllm_ext itself"
    ]


@EACH
@pytest.mark.parametrize("name", ["", "  ", 3, None])
def test_what_is_no_name_is_refused(what, name):
    register, _ = REGISTER[what]

    with pytest.raises(RegistrationError, match=f"{what} {name!r} is not a name"):
        register(name)


@DECORATORS
@pytest.mark.parametrize("refused", [int, Quantization(), "module:Class", None])
def test_a_class_that_is_refused_leaves_no_name_behind(decorator, base, registry, refused):
    with pytest.raises(RegistrationError, match=f"'dead': .* is not a subclass of vllm_ext.contracts.*{base.__name__}"):
        decorator("dead")(refused)

    assert "dead" not in registry.names()


@DECORATORS
def test_a_decorator_gives_the_class_back(decorator, base, registry):
    cls = {QuantizationConfig: Quantization, BaseModelLoader: Loader}[base]

    assert decorator("mine")(cls) is cls


def test_a_path_is_imported_when_it_is_used_and_a_failure_names_its_owner_and_is_tried_again(tmp_path, monkeypatch):
    with loading("plugin", "dist"):
        TokenizerRegistry.register("late", "late_tokenizer_module", "Tokenizer")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        PluginLoadError, match=r"tokenizer mode 'late', registered by plugin 'plugin' of dist as 'late_t"
    ):
        TokenizerRegistry.load_tokenizer_cls("late")

    (tmp_path / "late_tokenizer_module.py").write_text("class Tokenizer: ...\n")
    sys.path_importer_cache.clear()

    assert TokenizerRegistry.load_tokenizer_cls("late").__name__ == "Tokenizer"


@pytest.mark.parametrize(("module", "name"), [("a b", "C"), ("", "C"), ("a", ""), ("a:b", "C")])
def test_a_tokenizer_that_is_no_path_is_refused(module, name):
    with pytest.raises(RegistrationError, match="is not of the form 'package.module:Class'"):
        TokenizerRegistry.register("bad", module, name)

    assert "bad" not in TokenizerRegistry.get_supported_modes()


def test_a_path_to_something_else_is_no_such_class():
    QUANTIZATION_METHODS.register("odd", "json:JSONDecoder")
    with pytest.raises(ContractError, match="'json:JSONDecoder' is not a subclass of vllm_ext.*QuantizationConfig"):
        get_quantization_config("odd")


def test_a_snapshot_brings_back_what_was_there():
    before = QUANTIZATION_METHODS.snapshot()
    register_quantization_config("mine")(Quantization)
    QUANTIZATION_METHODS.restore(before)

    assert QUANTIZATION_METHODS.names() == ["int8"]


def test_plugins_register_without_torch():
    names = (
        "register_quantization_config, register_model_loader, TokenizerRegistry, LoRAResolverRegistry, ModelRegistry"
    )
    code = (
        f"from vllm_ext import {names}, QuantizationConfig, BaseModelLoader, LoRAResolver, LoRARequest, LinearMethod\n"
        "from vllm_ext import SchedulerInterface, TokenizerLike\n"
        "import sys; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
