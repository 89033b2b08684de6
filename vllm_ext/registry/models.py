"""Model classes by architecture name (``architectures`` in a model's ``config.json``)."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from vllm_ext.errors import RegistrationError, UnsupportedModel, did_you_mean, innermost_cause, listing
from vllm_ext.registry.base import OURS as _OURS
from vllm_ext.registry.base import Registry
from vllm_ext.registry.classes import CLASS_PATH as _CLASS_PATH
from vllm_ext.registry.scope import current_scope
from vllm_ext.registry.transformers_archs import ADAPTER, refusal_of

# Strings, so that neither torch nor a model is imported before it is needed.
_IN_TREE: dict[str, Any] = {
    "LlamaForCausalLM": "vllm_ext.models.llama:LlamaForCausalLM",
    "MistralForCausalLM": "vllm_ext.models.mistral:MistralForCausalLM",
    "Qwen2ForCausalLM": "vllm_ext.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "vllm_ext.models.qwen3:Qwen3ForCausalLM",
    "BertModel": "vllm_ext.models.bert:BertEmbeddingModel",
    "BertForMaskedLM": "vllm_ext.models.bert:BertEmbeddingModel",
    "BertForSequenceClassification": "vllm_ext.models.bert:BertForSequenceClassification",
    "RobertaModel": "vllm_ext.models.roberta:RobertaEmbeddingModel",
    "RobertaForMaskedLM": "vllm_ext.models.roberta:RobertaEmbeddingModel",
    "RobertaForSequenceClassification": "vllm_ext.models.roberta:RobertaForSequenceClassification",
    "XLMRobertaModel": "vllm_ext.models.roberta:RobertaEmbeddingModel",
    "XLMRobertaForMaskedLM": "vllm_ext.models.roberta:RobertaEmbeddingModel",
    "XLMRobertaForSequenceClassification": "vllm_ext.models.roberta:RobertaForSequenceClassification",
    # Decoders that pool are made of the classes that generate.
    "LlamaModel": "vllm_ext.models.llama:LlamaForCausalLM",
    "LlamaForSequenceClassification": "vllm_ext.models.llama:LlamaForCausalLM",
    "MistralModel": "vllm_ext.models.mistral:MistralForCausalLM",
    "MistralForSequenceClassification": "vllm_ext.models.mistral:MistralForCausalLM",
    "Qwen2Model": "vllm_ext.models.qwen2:Qwen2ForCausalLM",
    "Qwen2ForSequenceClassification": "vllm_ext.models.qwen2:Qwen2ForCausalLM",
    "Qwen3Model": "vllm_ext.models.qwen3:Qwen3ForCausalLM",
    "Qwen3ForSequenceClassification": "vllm_ext.models.qwen3:Qwen3ForCausalLM",
}


class _ModelRegistry:
    """``register_model`` for plugins, ``resolve_model_cls`` for the engine. vLLM: ``ModelRegistry``."""

    def __init__(self) -> None:
        self._registry: Registry[Any] = Registry("model architecture", _IN_TREE)
        self.snapshot = self._registry.snapshot
        self.restore = self._registry.restore

    def register_model(self, model_arch: str, model_cls: str | type) -> None:
        """Let ``model_cls`` implement ``model_arch``.

        Args:
            model_arch: a name as in ``architectures`` of ``config.json``.
            model_cls: an ``nn.Module`` subclass, or ``"module:Class"``, which is imported when a model needs it.

        Raises:
            RegistrationError: either argument has another form.
        """
        if not isinstance(model_arch, str) or not model_arch:
            raise RegistrationError(f"model architecture {model_arch!r} is not a name")
        if isinstance(model_cls, str):
            if not _CLASS_PATH.fullmatch(model_cls):
                raise RegistrationError(
                    f"model class {model_cls!r} for {model_arch!r} is not of the form 'package.module:Class'"
                )
        elif not _is_module_class(model_cls):
            raise RegistrationError(
                f"model class {model_cls!r} for {model_arch!r} is neither a torch.nn.Module subclass "
                "nor a string 'package.module:Class'"
            )
        self._registry.register(model_arch, model_cls)

    def get_supported_archs(self) -> list[str]:
        """Names of all architectures, sorted."""
        return self._registry.names()

    def resolve_model_cls(self, architectures: str | list[str], model_config: Any = None) -> tuple[type, str]:
        """The class for the first architecture that is registered, and that architecture; where none is, the adapter
        for those that transformers knows.

        Args:
            architectures: a name, or several, the best first.
            model_config: what vLLM goes by besides; not read, and nothing depends on it here.

        Raises:
            UnsupportedModel: nobody knows it, or its class cannot be imported; an import is tried again next time.
        """
        if isinstance(architectures, str):
            architectures = [architectures]
        for arch in architectures:
            if (entry := self._registry.find(arch)) is not None:
                return _import_model(arch, entry.value, entry.owner_text), arch
        refusal: str | None = None
        for arch in architectures:
            if (refusal := refusal_of(arch)) is None:
                return _import_model(arch, ADAPTER, _OURS), arch
        wanted = ", ".join(map(repr, architectures)) or "none named"
        hint = did_you_mean(architectures[0], self.get_supported_archs()) if architectures else ""
        raise UnsupportedModel(
            f"no model is registered for the architecture of this model: {wanted}{hint}. "
            f"Supported: {listing(self.get_supported_archs())}. {f'{refusal}. ' if refusal else ''}"
            f"A general plugin can add one with ModelRegistry.register_model{_left_out()}"
        )


def _left_out() -> str:
    """Whose general plugins an engine does not run, though they may bring the model."""
    foreign = current_scope().foreign - {"vllm-ext"}
    return f"; those of {listing(foreign)} are left out, since their platform is not the engine's" if foreign else ""


def _is_module_class(candidate: object) -> bool:
    """Whether it is an ``nn.Module`` subclass; without torch in the process nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(candidate, type) and issubclass(candidate, torch.nn.Module)


def _import_model(arch: str, target: str | type, owner: str) -> type:
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    try:
        model_cls = getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UnsupportedModel(
            f"model {arch!r}, registered by {owner} as {target!r}, cannot be imported: {innermost_cause(error)}"
        ) from error
    if not _is_module_class(model_cls):
        raise UnsupportedModel(f"model {arch!r}, registered by {owner}: {target!r} is not a torch.nn.Module subclass")
    return model_cls  # type: ignore[no-any-return]


ModelRegistry = _ModelRegistry()
