"""Models that pool, made of model classes that generate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from vllm_ext.contracts.pooler import POOLING_METHODS
from vllm_ext.contracts.pooling_params import ConvertType
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import ContractError, dotted_path
from vllm_ext.layers.linear import ReplicatedLinear
from vllm_ext.layers.pooler.heads import num_labels
from vllm_ext.layers.pooler.pooler import DispatchPooler
from vllm_ext.models.weights import load_stacked_weights


def as_pooling_model(model_cls: type[nn.Module], arch: str, convert_type: ConvertType) -> type[nn.Module]:
    """``model_cls`` where it pools by itself, else a class made of it.

    Raises:
        ContractError: it lacks methods of a pooling model, or cannot be converted.
    """
    name = f"model class {dotted_path(model_cls)} for {arch!r}"
    if missing := [method for method in POOLING_METHODS if not callable(getattr(model_cls, method, None))]:
        raise ContractError(f"{name} lacks {', '.join(missing)}; a pooling model has: {', '.join(POOLING_METHODS)}")
    if getattr(model_cls, "is_pooling_model", False):
        return model_cls
    if convert_type == "none":
        raise ContractError(
            f"{name} does not pool (is_pooling_model is not set), and engine.convert is 'none'; set it to embed or "
            "classify"
        )
    return as_embedding_model(model_cls) if convert_type == "embed" else as_seq_cls_model(model_cls)


def as_embedding_model(cls: type[Any]) -> type[nn.Module]:
    """A decoder without what generates, and with a pooler for embeddings. vLLM: ``as_embedding_model``."""

    class ForEmbedding(_Pooling, cls):
        def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self._drop_parts_that_generate()
            self.pooler = DispatchPooler.for_embedding(vllm_config)

    return _named(ForEmbedding, cls)


def as_seq_cls_model(cls: type[Any]) -> type[nn.Module]:
    """A decoder with ``score``, a projection to classes, in place of what generates. vLLM: ``as_seq_cls_model``."""

    class ForSequenceClassification(_Pooling, cls):
        def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self._drop_parts_that_generate()
            hf_config = vllm_config.model_config.hf_config
            self.score = ReplicatedLinear(hf_config.positive_int("hidden_size"), num_labels(hf_config))
            self.pooler = DispatchPooler.for_classification(vllm_config, self.score)

    return _named(ForSequenceClassification, cls)


class _Pooling:
    """What both have in common; the model's class comes after it."""

    is_pooling_model = True

    def _parts_that_generate(self) -> tuple[str, ...]:
        """What a pooling model has no use for; a model class that cannot do without its head says that it has none."""
        return getattr(self, "parts_that_generate", ("lm_head", "logits_processor"))

    def _drop_parts_that_generate(self) -> None:
        for part in self._parts_that_generate():
            if hasattr(self, part):
                delattr(self, part)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        """As the model's own, for checkpoints with and without its prefix."""
        own: list[tuple[str, torch.Tensor]] = []
        filled: set[str] | None = super().load_weights(self._of_the_model(weights, own))  # type: ignore[misc]
        filled_here = load_stacked_weights(self, own, {})  # type: ignore[arg-type]
        # A model that does not say what it has filled is a matter for the model loader, as every model's.
        return None if filled is None else filled | filled_here

    def _of_the_model(
        self, weights: Iterable[tuple[str, torch.Tensor]], own: list[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors for the model's own loader; those for what was added to it go to ``own``."""
        is_usual = bool(self._parts_that_generate()) and hasattr(self, "model")
        for name, tensor in weights:
            if name.startswith("score."):
                # A view of a mapped file, which is open only now.
                own.append((name, tensor.clone()))
            elif not is_usual or name.startswith("model."):
                yield name, tensor
            elif not name.startswith("lm_head."):
                yield f"model.{name}", tensor


def _named(made: type[nn.Module], cls: type) -> type[nn.Module]:
    """``made`` under a name that tells what it is made of."""
    made.__name__ = made.__qualname__ = f"{cls.__name__}{made.__name__}"
    made.__module__ = cls.__module__
    return made
