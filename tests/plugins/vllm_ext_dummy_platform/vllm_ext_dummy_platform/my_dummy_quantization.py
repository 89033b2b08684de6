"""A quantization method: weights as multiples of 1/256, in sixteen bits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vllm_ext import LinearMethod, QuantizationConfig
from vllm_ext_dummy_platform import calls

STEP = 1 / 256


class MyDummyQuantizationConfig(QuantizationConfig):
    """Takes every dense layer but the last."""

    def get_name(self) -> str:
        return "dummy_grid"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 10

    @staticmethod
    def get_config_filenames() -> list[str]:
        return ["dummy_quantization.json"]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MyDummyQuantizationConfig:
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> LinearMethod | None:
        return None if prefix.endswith("lm_head") else MyDummyLinearMethod()


class MyDummyLinearMethod(LinearMethod):
    """Takes the weights as they were loaded, and rounds them."""

    def create_weights(self, layer: nn.Module, *sizes: Any, **extra_weight_attrs: Any) -> None:
        """The checkpoint's tensors go to the layer's own weight."""

    def process_weights_after_loading(self, layer: Any) -> None:
        steps = (layer.weight.data / STEP).round().to(torch.int16)
        layer.weight = nn.Parameter(steps, requires_grad=False)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        calls["quantized_products"] += 1
        return F.linear(x, layer.weight.to(x.dtype) * STEP, bias)
