"""Dense layers of a model of transformers, multiplied as the platform does it."""

from __future__ import annotations

import torch
from torch import nn

from vllm_ext.contracts.linear_method import LinearMethod
from vllm_ext.dispatch.dispatcher import get_current_dispatcher


class PlatformLinear(nn.Linear):
    """What a plain ``nn.Linear`` becomes; its parameters stay as they are until the checkpoint is read."""

    weight: nn.Parameter | None  # type: ignore[assignment]
    linear_method: LinearMethod

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Called once by the loader."""
        self.linear_method.process_weights_after_loading(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return self.linear_method.apply(self, rows, self.bias).view(*x.shape[:-1], self.out_features)


def use_platform_linear(model: nn.Module) -> None:
    """Let the platform multiply in each ``nn.Linear`` of ``model``; subclasses of it keep their own way."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = PlatformLinear
            module.linear_method = get_current_dispatcher().linear_method()  # type: ignore[assignment]
