"""The linear method contract: how a dense weight is laid out and multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


class LinearLayer(Protocol):
    """A dense layer, as its linear method sees it."""

    weight: nn.Parameter | None
    """``[out, in]``; a method that has rearranged it may set it to ``None``."""
    linear_method: LinearMethod


class LinearMethod(ABC):
    """One layer's way to compute ``x @ weight.T + bias``; every layer has an instance of its own. vLLM:
    ``LinearMethodBase``.

    The class path comes from :meth:`Platform.get_unquantized_linear_method_cls`, and then it is built without
    arguments; or the instance from :meth:`QuantizationConfig.get_quant_method`.
    """

    def create_weights(  # noqa: B027 - most methods keep the layer's own weight
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make the parameters that the checkpoint's tensors are copied to. vLLM: ``create_weights``.

        Called for the methods of a quantization, before weights are read. As it is, the layer keeps its ``weight``
        ``[out, in]`` in ``params_dtype``. A method that replaces it gives each new parameter an attribute
        ``weight_loader(param, loaded_weight[, shard_id])``, or leaves copying to the engine. An override that has
        vLLM's parameters ``input_size`` and ``output_size`` before ``params_dtype`` is told them too: columns and rows
        of the weight over all ranks.

        Args:
            layer: the layer; its parameters and buffers may be replaced.
            input_size_per_partition: columns of this rank's weight.
            output_partition_sizes: rows of each projection that the layer holds, on this rank.
            extra_weight_attrs: ``weight_loader``, the layer's own, where it has one: it copies the part of a
                checkpoint's tensor that belongs to this rank, 1-dimensional ones by rows.
        """

    @abstractmethod
    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        """Rearrange ``layer.weight``, once, after the checkpoint was read; may change ``layer.linear_method``. vLLM:
        ``process_weights_after_loading``.
        """

    @abstractmethod
    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``x @ weight.T + bias``, whatever has become of the weight. vLLM: ``apply``.

        Args:
            layer: only read.
            x: ``[rows, in]`` in the model's dtype; only read.
            bias: ``[out]`` in the model's dtype; only read.

        Returns: a new tensor ``[rows, out]`` of the same dtype.
        """
