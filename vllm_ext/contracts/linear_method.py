"""The linear method contract: how a dense weight is laid out and multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


class LinearLayer(Protocol):
    """A dense layer, as its linear method sees it."""

    weight: nn.Parameter | None
    """``[out, in]``; a method that has rearranged it may set it to ``None``."""
    linear_method: LinearMethod


class LinearMethod(ABC):
    """One layer's way to compute ``x @ weight.T + bias``; every layer has an instance of its own.

    The class path comes from :meth:`Platform.get_unquantized_linear_method_cls`; it is built without arguments.
    """

    @abstractmethod
    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        """Rearrange ``layer.weight``, once, after the checkpoint was read; may change ``layer.linear_method``."""

    @abstractmethod
    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``x`` ``[rows, in]`` to ``[rows, out]``."""
