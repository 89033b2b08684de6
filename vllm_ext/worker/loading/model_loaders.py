"""In-tree model loaders: safetensors files of a Hugging Face directory, and random numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch
from torch import nn

from vllm_ext.contracts.model_loader import BaseModelLoader
from vllm_ext.contracts.vllm_config import ModelConfig
from vllm_ext.distributed.parallel_state import get_tp_group
from vllm_ext.errors import CheckpointError, dotted_path, listing
from vllm_ext.worker.loading.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


class SafetensorsModelLoader(BaseModelLoader):
    """``*.safetensors`` of the model directory; pickled weights are never read, and nothing is downloaded."""

    def download_model(self, model_config: ModelConfig) -> None:
        """CheckpointError where the directory has no weights that can be read."""
        self._checkpoint = Checkpoint.open(model_config.model)

    def load_weights(self, model: Any, model_config: ModelConfig) -> None:
        checkpoint = self._checkpoint
        # A rank needs a part of most tensors: what it copies comes from the disk, and nothing besides.
        is_split = get_tp_group().world_size > 1
        # Closed at once where a tensor does not fit: files are being read ahead.
        with closing(checkpoint.tensors(progress=self.load_config.use_tqdm_on_load, touch_all=not is_split)) as tensors:
            try:
                filled = model.load_weights(tensors)
            except CheckpointError as error:
                raise CheckpointError(f"{checkpoint.at_work}: {error}") from error
        if filled is None:
            # vLLM takes it so, and models written for it may rely on that.
            logger.warning(
                "load_weights() of model %s returned None, so that nobody knows what the checkpoint lacks; let it "
                "return the names of the parameters that it has filled",
                dotted_path(type(model)),
            )
            return
        names = {name for name, _ in model.named_parameters()}
        if unfilled := names - set(filled):
            raise CheckpointError(
                f"{checkpoint.source} does not hold all tensors of the model; missing: "
                f"{listing(_checkpoint_names(model, unfilled, checkpoint.names()))}"
            )


class DummyModelLoader(BaseModelLoader):
    """Small random numbers, the same for the same seed, however the model is split: for runs that only measure.

    Each rank draws the whole of every tensor, one after the other, and keeps its part.
    """

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing is needed."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        generator = torch.Generator().manual_seed(model_config.seed)
        filled: set[int] = set()
        for module in model.modules():
            for param in module.parameters(recurse=False):
                if id(param) not in filled:
                    filled.add(id(param))
                    _fill(module, param, generator)


def _fill(module: nn.Module, param: nn.Parameter, generator: torch.Generator) -> None:
    """Random numbers for one parameter, by its layer's own loader where the layer holds a part of something."""
    whole_shapes: Any = getattr(module, "whole_shapes", None)
    if whole_shapes is None:
        param.data.copy_(_random(tuple(param.shape), param.dtype, generator))
        return
    for shard_id, shape in whole_shapes(param).items():
        numbers = _random(tuple(shape), param.dtype, generator)
        # Not the parameter's own loader, with which a quantization method makes something else of what it is given.
        module.weight_loader(param, numbers, *([] if shard_id is None else [shard_id]))  # type: ignore[operator]


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point:
        numbers = torch.empty(shape, dtype=torch.float32, device="cpu")
        return numbers.uniform_(-0.02, 0.02, generator=generator).to(dtype)
    bounds = torch.iinfo(dtype)
    return torch.randint(bounds.min, bounds.max, shape, generator=generator, dtype=dtype, device="cpu")


def _checkpoint_names(model: nn.Module, parameters: Iterable[str], present: set[str]) -> set[str]:
    """The tensors that parameters are filled from, as far as they are not present."""
    parts = getattr(model, "packed_modules_mapping", {})
    missing = set()
    for name in parameters:
        module, _, leaf = name.rpartition(".")
        parent, _, packed = module.rpartition(".")
        missing |= {f"{parent}.{part}.{leaf}" for part in parts[packed]} - present if packed in parts else {name}
    return missing
