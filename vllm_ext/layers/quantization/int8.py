"""``int8``: weights in eight bits, with a scale for each output channel; computation in the model's own dtype.

A weight is ``weight * weight_scale[:, None]``, of int8 ``weight`` ``[out, in]`` and float32 ``weight_scale`` ``[out]``.
A checkpoint may hold it so, and say ``{"quant_method": "int8"}``; a floating-point one is quantized while it is read.
Where a model is split over ranks, each reads such a weight as a whole: a scale is that of the whole row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from vllm_ext.contracts.linear_method import LinearLayer, LinearMethod
from vllm_ext.contracts.quantization import QuantizationConfig
from vllm_ext.errors import CheckpointError, listing
from vllm_ext.layers.linear import check_stored_dtype, copy_checked

_LARGEST = 127
_NUMBERS_AT_ONCE = 1 << 18
"""How many numbers of a weight are widened at a time: what that takes stays in the processor's cache."""
_UNFILLED_SCALE = 0.02 / _LARGEST
"""For weights that no checkpoint fills: they are as small as other random ones then."""


class Int8Config(QuantizationConfig):
    """Which layers have int8 weights.

    Args:
        is_stored: whether the checkpoint holds int8 weights and their scales.
        ignored_layers: names of the checkpoint's layers, or their last parts, that stay as they are. The output layer
            is one of them unless told otherwise: it decides between tokens.
    """

    def __init__(self, is_stored: bool = False, ignored_layers: Sequence[str] = ("lm_head",)) -> None:
        self.is_stored = is_stored
        self.ignored_layers = tuple(ignored_layers)

    def get_name(self) -> str:
        return "int8"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        known = {"quant_method", "ignored_layers"}
        if unknown := set(config) - known:
            raise ValueError(f"it has {listing(unknown)}, and only {listing(known)} are known")
        ignored = config.get("ignored_layers", ["lm_head"])
        if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
            raise ValueError(f"ignored_layers is {ignored!r}; it takes a list of names")
        return cls(is_stored=True, ignored_layers=ignored)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> LinearMethod | None:
        parent, dot, own = prefix.rpartition(".")
        parts = [f"{parent}{dot}{part}" for part in self.packed_modules_mapping.get(own, [])]
        ignored = [part for part in parts or [prefix] if self._is_ignored(part) or self._is_ignored(prefix)]
        if not ignored:
            return Int8LinearMethod(self.is_stored)
        if parts and len(ignored) < len(parts):
            raise ValueError(
                f"ignored_layers leaves out {listing(ignored)}, and {prefix} holds {listing(parts)}; name all or none"
            )
        return None

    def _is_ignored(self, name: str) -> bool:
        return any(name == ignored or name.endswith(f".{ignored}") for ignored in self.ignored_layers)


class Int8LinearMethod(LinearMethod):
    """Keeps the weight in int8, and widens it for the length of one product."""

    def __init__(self, is_stored: bool) -> None:
        self.is_stored = is_stored

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        rows = sum(output_partition_sizes)
        copy: Callable[..., None] = extra_weight_attrs.get("weight_loader", _copy_whole)
        weight = nn.Parameter(torch.zeros(rows, input_size_per_partition, dtype=torch.int8), requires_grad=False)
        scale = torch.full((rows,), _UNFILLED_SCALE, dtype=torch.float32)
        layer.weight = weight
        if self.is_stored:
            layer.weight_scale = nn.Parameter(scale, requires_grad=False)
            weight.weight_loader = _load_stored(copy)  # type: ignore[attr-defined]
            layer.weight_scale.weight_loader = _load_scale(copy)  # type: ignore[attr-defined]
        else:
            # A buffer: no tensor of the checkpoint is meant for it.
            layer.register_buffer("weight_scale", scale, persistent=False)
            weight.weight_loader = _load_and_quantize(copy, scale)  # type: ignore[attr-defined]

    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        """Nothing to do: the weight is laid out as it was loaded."""

    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        scale: torch.Tensor = layer.weight_scale  # type: ignore[attr-defined]
        weight = layer.weight.to(x.dtype)  # type: ignore[union-attr]
        if x.dtype is torch.float16:  # sums of whole numbers would leave its range
            return F.linear(x, weight.mul_(scale[:, None]), bias)
        # Whole numbers up to 127 are exact in every dtype; to scale what came out takes less than to scale the weight.
        product = F.linear(x, weight).mul_(scale)
        return product if bias is None else product.add_(bias)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 of the same shape ``[rows, columns]``, and a float32 scale for each row; its largest number becomes 127."""
    quantized = torch.empty_like(weight, dtype=torch.int8)
    scale = weight.new_empty(len(weight), dtype=torch.float32)
    num_rows = max(1, _NUMBERS_AT_ONCE // max(1, weight.shape[1]))
    slabs = (tensor.split(num_rows) for tensor in (weight, quantized, scale))
    for wide, quantized_rows, scales in zip(*slabs, strict=True):
        wide = wide.float()
        torch.div(wide.abs().amax(dim=1), _LARGEST, out=scales)
        # A row of zeros has no largest number.
        steps = wide / torch.where(scales == 0, 1.0, scales)[:, None]
        quantized_rows.copy_(steps.round_().clamp_(-_LARGEST, _LARGEST))
    return quantized, scale


def _load_and_quantize(copy: Callable[..., None], scale: torch.Tensor) -> Callable[..., None]:
    def load(param: nn.Parameter, loaded: torch.Tensor, *shard_id: Any) -> None:
        check_stored_dtype(loaded)
        # Whole rows, before they are split among ranks: a rank's columns alone would have another scale.
        rows, scales = quantize_rows(loaded if loaded.dim() == 2 else loaded.flatten()[None])
        copy(param, rows.view(loaded.shape), *shard_id)
        copy(_as_parameter(scale), scales, *shard_id)

    return load


def _load_stored(copy: Callable[..., None]) -> Callable[..., None]:
    def load(param: nn.Parameter, loaded: torch.Tensor, *shard_id: Any) -> None:
        if loaded.dtype is not torch.int8:
            raise CheckpointError(
                f"its dtype is {loaded.dtype}, and the checkpoint's quantization_config says int8; list its layer "
                "under ignored_layers there, or use the checkpoint that the configuration belongs to"
            )
        copy(param, loaded, *shard_id)

    return load


def _load_scale(copy: Callable[..., None]) -> Callable[..., None]:
    def load(param: nn.Parameter, loaded: torch.Tensor, *shard_id: Any) -> None:
        # Some store a column.
        copy(param, loaded.flatten() if loaded.dim() == 2 and loaded.shape[1] == 1 else loaded, *shard_id)

    return load


def _copy_whole(param: nn.Parameter, loaded: torch.Tensor) -> None:
    copy_checked(param.data, loaded)


def _as_parameter(tensor: torch.Tensor) -> nn.Parameter:
    """The same memory, in the form that a layer's own loader takes."""
    return nn.Parameter(tensor, requires_grad=False)
