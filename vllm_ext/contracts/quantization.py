"""The quantization contract: weights in fewer bits, by a method that a setting or the checkpoint names.

In vLLM: ``vllm.model_executor.layers.quantization``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from vllm_ext.errors import RegistrationError
from vllm_ext.registry.quantization import QUANTIZATION_METHODS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vllm_ext.contracts.linear_method import LinearMethod

Q = TypeVar("Q", bound="type[QuantizationConfig]")


class QuantizationConfig(ABC):
    """What one quantization method needs to know, and the linear methods that carry it out. vLLM:
    ``QuantizationConfig``.

    It is made once for an engine, by :meth:`from_config` where the checkpoint (``quantization_config`` of its
    ``config.json``, or a file of :meth:`get_config_filenames`) describes how it was quantized, else without arguments:
    then the checkpoint's weights are floating-point, and the method quantizes them.
    """

    packed_modules_mapping: Mapping[str, list[str]] = MappingProxyType({})
    """Last part of a layer's name to those of the checkpoint's layers that it holds, e.g. ``qkv_proj`` to ``q_proj``,
    ``k_proj`` and ``v_proj``; set from the model before :meth:`get_quant_method` is asked. vLLM:
    ``packed_modules_mapping``.
    """

    @abstractmethod
    def get_name(self) -> str:
        """The name it is registered under. vLLM: ``get_name``."""

    @abstractmethod
    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Dtypes that a model may compute in; the engine refuses others. vLLM: ``get_supported_act_dtypes``."""

    @classmethod
    def get_min_capability(cls) -> int:
        """The lowest compute capability that it runs on, ``major * 10 + minor``; -1 for any. Not asked for devices
        that have none. vLLM: ``get_min_capability``.
        """
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """JSON files of a model directory that may describe how it was quantized; the first that exists is read.
        vLLM: ``get_config_filenames``.
        """
        return []

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """One for a checkpoint that is quantized already. vLLM: ``from_config``.

        Args:
            config: the object in the checkpoint's configuration, ``quant_method`` among its keys.

        Raises:
            ValueError: a value is missing or wrong.
        """

    @abstractmethod
    def get_quant_method(self, layer: nn.Module, prefix: str) -> LinearMethod | None:
        """How ``layer`` is laid out and multiplied. vLLM: ``get_quant_method``.

        Asked for each dense layer that has a weight of its own, after the model was built and before its weights are
        read; an output layer that shares the embedding's weight is not asked about.

        Args:
            layer: with ``weight`` ``[out, in]`` in the model's dtype, not filled yet.
            prefix: its name in the model, e.g. ``model.layers.0.mlp.down_proj``.

        Returns: a method for this layer alone, or ``None`` to leave it to the platform.

        Raises:
            ValueError: what the checkpoint's configuration says does not fit the layer.
        """

    def __eq__(self, other: object) -> bool:
        """Whether it is the same method with the same values; the platform's hooks are watched by it."""
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def register_quantization_config(quantization: str) -> Callable[[Q], Q]:
    """Class decorator: make a :class:`QuantizationConfig` known as ``quantization``, for the setting
    ``engine.quantization`` and for checkpoints that name it. vLLM: ``register_quantization_config``.

    Raises:
        RegistrationError: ``quantization`` is no name, or the class is no such subclass; the name stays unknown.
    """

    def decorate(config_cls: Q) -> Q:
        if not isinstance(config_cls, type) or not issubclass(config_cls, QuantizationConfig):
            raise RegistrationError(
                f"quantization method {quantization!r}: {config_cls!r} is not a subclass of "
                "vllm_ext.contracts.quantization.QuantizationConfig"
            )
        QUANTIZATION_METHODS.register(quantization, config_cls)
        return config_cls

    return decorate


def get_quantization_config(quantization: str, *, named_by: str = "") -> type[QuantizationConfig]:
    """The class registered as ``quantization``. vLLM: ``get_quantization_config``.

    Args:
        named_by: the setting that names it, for messages.

    Raises:
        PluginNotFound: there is none; the text has those that exist.
        PluginLoadError, ContractError: it cannot be imported, or is no such class.
    """
    return QUANTIZATION_METHODS.load(quantization, QuantizationConfig, named_by=named_by)
