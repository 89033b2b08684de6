"""Gives the dense layers of a model to a quantization method, between building the model and reading its weights."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vllm_ext.contracts.linear_method import LinearMethod
from vllm_ext.errors import CheckpointError, ConfigError, ContractError
from vllm_ext.layers.linear import LinearBase

if TYPE_CHECKING:
    from vllm_ext.contracts.quantization import QuantizationConfig


def quantize_layers(model: nn.Module, quant_config: QuantizationConfig, dtype: torch.dtype) -> None:
    """Let ``quant_config`` choose how each dense layer of ``model`` is laid out.

    Args:
        dtype: of the weights that the layers have now.

    Raises:
        ConfigError: it chooses none: the setting would do nothing.
        CheckpointError: what the checkpoint says about its quantization does not fit the model.
        ContractError: it answers with something else than a linear method or ``None``.
    """
    quant_config.packed_modules_mapping = getattr(model, "packed_modules_mapping", {})
    owners = Counter(id(param) for module in model.modules() for param in module._parameters.values())
    num_chosen = 0
    for name, layer in model.named_modules():
        weight = layer._parameters.get("weight")
        if weight is None or not isinstance(getattr(layer, "linear_method", None), LinearMethod):
            continue
        if owners[id(weight)] > 1:  # the embedding's as well, which stays as the embedding needs it
            continue
        method: Any = _method_for(layer, name, quant_config)
        if method is None:
            continue
        layer.linear_method = method
        out, in_ = weight.shape
        own = {"weight_loader": layer.weight_loader} if hasattr(layer, "weight_loader") else {}
        sizes = [in_, list(getattr(layer, "local_sizes", [out]))]
        if "input_size" in inspect.signature(method.create_weights).parameters:
            sizes += _whole_sizes(layer, weight)
        method.create_weights(layer, *sizes, dtype, **own)
        num_chosen += 1
    if not num_chosen:
        raise ConfigError(
            f"quantization {quant_config.get_name()!r} takes none of the layers of this model "
            f"({type(model).__qualname__}); leave engine.quantization at null"
        )


def _whole_sizes(layer: nn.Module, weight: nn.Parameter) -> tuple[int, int]:
    """Columns and rows of the layer's weight over all ranks."""
    shapes = list(layer.whole_shapes(weight).values()) if isinstance(layer, LinearBase) else [tuple(weight.shape)]
    return shapes[0][1], sum(shape[0] for shape in shapes)


def _method_for(layer: nn.Module, name: str, quant_config: QuantizationConfig) -> LinearMethod | None:
    try:
        method: Any = quant_config.get_quant_method(layer, name)
    except ValueError as error:
        raise CheckpointError(f"quantization {quant_config.get_name()!r} and this model: {error}") from error
    if method is not None and not isinstance(method, LinearMethod):
        raise ContractError(
            f"quantization method {quant_config.get_name()!r}: get_quant_method() gave {method!r} for layer {name!r}, "
            "which is neither a LinearMethod nor None"
        )
    return method
