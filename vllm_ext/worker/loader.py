"""Builds a model on the device and fills it from a Hugging Face directory; no pickle is ever read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vllm_ext.contracts.model import TEXT_GENERATION_METHODS
from vllm_ext.errors import CheckpointError, ContractError, UnsupportedModel, listing
from vllm_ext.registry.models import ModelRegistry
from vllm_ext.worker.checkpoint import Checkpoint

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import ModelConfig, VllmConfig


def load_model(vllm_config: VllmConfig, device: torch.device, *, dummy_weights: bool = False) -> nn.Module:
    """The model of ``vllm_config``, ready to compute. Call it inside ``Dispatcher.activate()`` and ``use_tp_group``.

    Raises:
        UnsupportedModel: no model class, or a quantized checkpoint.
        ContractError: the model class lacks methods.
        CheckpointError: files or tensors are missing, damaged, or do not fit.
    """
    config = vllm_config.model_config
    _refuse_quantized(config)
    model_cls, arch = ModelRegistry.resolve_model_cls(config.architectures)
    _check_contract(model_cls, arch)
    with _build_on(device, config.dtype):
        model = model_cls(vllm_config=vllm_config)
    if dummy_weights:
        _fill_dummy(model, config.seed)
    else:
        checkpoint = Checkpoint.open(config.model)
        _load_weights(model, checkpoint, progress=vllm_config.load_config.use_tqdm_on_load)
    # One module after the other: each may hold its weights twice while it rearranges them.
    for module in model.modules():
        process = getattr(module, "process_weights_after_loading", None)
        if process is not None:
            process(config.dtype)
    for param in model.parameters():
        # It leads back to the module, and such a circle would keep the weights after the model is dropped.
        vars(param).pop("weight_loader", None)
    return model.eval()


def _refuse_quantized(config: ModelConfig) -> None:
    quantization = config.hf_config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
        raise UnsupportedModel(
            f"{config.hf_config.source or config.model}: the checkpoint is quantized ({method!r}), which is not "
            "supported; supported: float32, bfloat16 and float16 weights. Use the model's unquantized checkpoint"
        )


def _check_contract(model_cls: type[nn.Module], arch: str) -> None:
    missing = [name for name in TEXT_GENERATION_METHODS if not callable(getattr(model_cls, name, None))]
    if model_cls.forward is nn.Module.forward and "forward" not in missing:
        missing.append("forward")
    if missing:
        raise ContractError(
            f"model class {model_cls.__module__}.{model_cls.__qualname__} for {arch!r} lacks {', '.join(missing)}; "
            f"a model for text generation has: {', '.join(TEXT_GENERATION_METHODS)}"
        )


@contextmanager
def _build_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New tensors are made on ``device`` in ``dtype``, whether the model asks for it or not."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(default)


def _load_weights(model: Any, checkpoint: Checkpoint, *, progress: bool) -> None:
    # Closed at once where a tensor does not fit: files are being read ahead.
    with torch.no_grad(), closing(checkpoint.tensors(progress=progress)) as tensors:
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


def _checkpoint_names(model: nn.Module, parameters: Iterable[str], present: set[str]) -> set[str]:
    """The tensors that parameters are filled from, as far as they are not present."""
    parts = getattr(model, "packed_modules_mapping", {})
    missing = set()
    for name in parameters:
        module, _, leaf = name.rpartition(".")
        parent, _, packed = module.rpartition(".")
        missing |= {f"{parent}.{part}.{leaf}" for part in parts[packed]} - present if packed in parts else {name}
    return missing


def _fill_dummy(model: nn.Module, seed: int) -> None:
    """Small random numbers, the same for the same seed: for runs that only measure."""
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.data.copy_(torch.empty(param.shape).uniform_(-0.02, 0.02, generator=generator))
