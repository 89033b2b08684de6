"""Builds a model on the device, and lets the engine's model loader fill it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from vllm_ext.contracts.call_check import check_constructor, check_method
from vllm_ext.contracts.model import TEXT_GENERATION_METHODS
from vllm_ext.contracts.model_loader import get_model_loader
from vllm_ext.errors import ConfigError, ContractError, dotted_path
from vllm_ext.models.pooling import as_pooling_model
from vllm_ext.registry.models import ModelRegistry
from vllm_ext.worker.loading.quantization import quantize_layers

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import VllmConfig

_CALLS = {"forward": ("input_ids", "positions"), "compute_logits": ("hidden_states",)}
"""How methods of a model are called at least, by position."""


def load_model(vllm_config: VllmConfig, device: torch.device, *, dummy_weights: bool = False) -> nn.Module:
    """The model of ``vllm_config``, ready to compute. Call it inside ``Dispatcher.activate()`` and ``use_tp_group``.

    Args:
        dummy_weights: random weights, whatever ``load_config.load_format`` is.

    Raises:
        UnsupportedModel: no model class.
        ContractError: the model class lacks methods, or takes other arguments than it is given.
        CheckpointError: files or tensors are missing, damaged, or do not fit.
        PluginNotFound, PluginLoadError: the load format is unknown, or its loader cannot be imported.
        ConfigError: the quantization takes no layer of the model.
    """
    config, quant_config = vllm_config.model_config, vllm_config.quant_config
    load_config = vllm_config.load_config
    if dummy_weights:
        load_config = dataclasses.replace(load_config, load_format="dummy")
    loader = get_model_loader(load_config)
    model_cls, arch = ModelRegistry.resolve_model_cls(config.architectures)
    if config.runner_type == "pooling":
        model_cls = as_pooling_model(model_cls, arch, config.convert_type)
    else:
        _check_contract(model_cls, arch)
    with _build_on(device, config.dtype):
        model = model_cls(vllm_config=vllm_config)
        if quant_config is not None:
            quantize_layers(model, quant_config, config.dtype)
    loader.download_model(config)
    with torch.no_grad():
        loader.load_weights(model, config)
    # One module after the other: each may hold its weights twice while it rearranges them.
    for module in model.modules():
        process = getattr(module, "process_weights_after_loading", None)
        if process is not None:
            process(config.dtype)
    for param in model.parameters():
        # It leads back to the module, and such a circle would keep the weights after the model is dropped.
        vars(param).pop("weight_loader", None)
    return model.eval()


def _check_contract(model_cls: type[nn.Module], arch: str) -> None:
    if getattr(model_cls, "is_pooling_model", False):
        raise ConfigError(f"{arch!r} is a pooling model, and engine.runner is 'generate'; set it to 'pooling' or auto")
    missing = [name for name in TEXT_GENERATION_METHODS if not callable(getattr(model_cls, name, None))]
    if model_cls.forward is nn.Module.forward and "forward" not in missing:
        missing.append("forward")
    if missing:
        raise ContractError(
            f"model class {dotted_path(model_cls)} for {arch!r} lacks {', '.join(missing)}; "
            f"a model for text generation has: {', '.join(TEXT_GENERATION_METHODS)}"
        )
    where = {"slot": "model", "source": f"architecture {arch!r}"}
    check_constructor(model_cls, ("vllm_config",), **where)
    for name, arguments in _CALLS.items():
        check_method(model_cls, name, arguments, **where)


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
