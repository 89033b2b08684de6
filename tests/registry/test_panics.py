"""What compiled code raises is often no Exception: a module that panics while it is imported is named all the same."""

from __future__ import annotations

import pytest

from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.errors import ContractError, PluginLoadError, RegistrationError, UnsupportedModel
from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum, register_backend
from vllm_ext.registry.models import ModelRegistry
from vllm_ext.registry.tokenizers import TokenizerRegistry


def model() -> None:
    ModelRegistry.register_model("Panics", "panics_at_import:Model")
    ModelRegistry.resolve_model_cls(["Panics"])


def tokenizer() -> None:
    TokenizerRegistry.register("panics", "panics_at_import", "Tokenizer")
    TokenizerRegistry.load_tokenizer_cls("panics")


def attention_backend() -> None:
    register_backend("PANICS", "panics_at_import.Backend")
    AttentionBackendEnum["PANICS"].get_class()


def worker() -> None:
    resolve_class("panics_at_import.Worker", object, slot="worker", source="platform 'npu'")


@pytest.mark.parametrize(
    "use, error",
    [
        (model, UnsupportedModel),
        (tokenizer, PluginLoadError),
        (attention_backend, RegistrationError),
        (worker, ContractError),
    ],
)
def test_a_module_that_panics_at_import_is_named(tmp_path, monkeypatch, use, error):
    (tmp_path / "panics_at_import.py").write_text("raise BaseException('not on this processor')\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(error, match="panics_at_import.* cannot be imported: BaseException: not on this processor"):
        use()
