"""In-tree model loaders: safetensors files of a Hugging Face directory, and random numbers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch
from torch import nn

from vllm_ext.contracts.model_loader import BaseModelLoader
from vllm_ext.contracts.vllm_config import ModelConfig
from vllm_ext.errors import CheckpointError, listing
from vllm_ext.worker.checkpoint import Checkpoint


class SafetensorsModelLoader(BaseModelLoader):
    """``*.safetensors`` of the model directory; pickled weights are never read, and nothing is downloaded."""

    def download_model(self, model_config: ModelConfig) -> None:
        """CheckpointError where the directory has no weights that can be read."""
        self._checkpoint = Checkpoint.open(model_config.model)

    def load_weights(self, model: Any, model_config: ModelConfig) -> None:
        checkpoint = self._checkpoint
        # Closed at once where a tensor does not fit: files are being read ahead.
        with closing(checkpoint.tensors(progress=self.load_config.use_tqdm_on_load)) as tensors:
            try:
                filled = model.load_weights(tensors)
            except CheckpointError as error:
                raise CheckpointError(f"{checkpoint.at_work}: {error}") from error
        names = {name for name, _ in model.named_parameters()}
        if unfilled := names - set(filled or ()):
            raise CheckpointError(
                f"{checkpoint.source} does not hold all tensors of the model; missing: "
                f"{listing(_checkpoint_names(model, unfilled, checkpoint.names()))}"
            )


class DummyModelLoader(BaseModelLoader):
    """Small random numbers, the same for the same seed and rank's share: for runs that only measure."""

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing is needed."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        generator = torch.Generator().manual_seed(model_config.seed)
        for param in model.parameters():
            if param.dtype.is_floating_point:
                param.data.copy_(torch.empty(param.shape).uniform_(-0.02, 0.02, generator=generator))
            else:
                bounds = torch.iinfo(param.dtype)
                numbers = torch.randint(bounds.min, bounds.max, param.shape, generator=generator)
                param.data.copy_(numbers)


def _checkpoint_names(model: nn.Module, parameters: Iterable[str], present: set[str]) -> set[str]:
    """The tensors that parameters are filled from, as far as they are not present."""
    parts = getattr(model, "packed_modules_mapping", {})
    missing = set()
    for name in parameters:
        module, _, leaf = name.rpartition(".")
        parent, _, packed = module.rpartition(".")
        missing |= {f"{parent}.{part}.{leaf}" for part in parts[packed]} - present if packed in parts else {name}
    return missing
