"""The model loader contract: where a model's weights come from, by load format.

In vLLM: ``vllm.model_executor.model_loader``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vllm_ext.errors import RegistrationError
from vllm_ext.registry.model_loaders import MODEL_LOADERS

if TYPE_CHECKING:
    from torch import nn

    from vllm_ext.contracts.vllm_config import LoadConfig, ModelConfig

L = TypeVar("L", bound="type[BaseModelLoader]")


class BaseModelLoader(ABC):
    """Fills a model that is built already. Made once for each worker, as ``cls(load_config)``. vLLM:
    ``BaseModelLoader``.

    The worker builds the model on its device, and calls :meth:`download_model` and :meth:`load_weights`; what the
    layers then make of their weights (``process_weights_after_loading``) is not the loader's business.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        self.load_config = load_config

    @abstractmethod
    def download_model(self, model_config: ModelConfig) -> None:
        """Make the weights available on this machine; nothing to do where they are. vLLM: ``download_model``.

        Its ``config.json`` is there already.

        Raises:
            CheckpointError: they cannot be had.
        """

    @abstractmethod
    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Fill all parameters, in place, without gradients. vLLM: ``load_weights``.

        Args:
            model: on its device, with uninitialised parameters in ``model_config.dtype``. Its method ``load_weights``
                takes pairs of a checkpoint's tensor name and a tensor in host memory, copies the part that belongs to
                this rank, and answers with the names of the parameters it filled completely.

        Raises:
            CheckpointError: a tensor is missing, damaged, or does not fit.
        """


def register_model_loader(load_format: str) -> Callable[[L], L]:
    """Class decorator: make a :class:`BaseModelLoader` known as ``load_format``, for the setting
    ``engine.load_format``. vLLM: ``register_model_loader``.

    Raises:
        RegistrationError: ``load_format`` is no name, or the class is no such subclass; nothing is registered.
    """

    def decorate(loader_cls: L) -> L:
        if not isinstance(loader_cls, type) or not issubclass(loader_cls, BaseModelLoader):
            raise RegistrationError(
                f"load format {load_format!r}: {loader_cls!r} is not a subclass of "
                "vllm_ext.contracts.model_loader.BaseModelLoader"
            )
        MODEL_LOADERS.register(load_format, loader_cls)
        return loader_cls

    return decorate


def get_model_loader(load_config: LoadConfig) -> BaseModelLoader:
    """A loader for ``load_config.load_format``. vLLM: ``get_model_loader``.

    Raises:
        PluginNotFound: no such format is registered; the text has those that are.
        PluginLoadError, ContractError: its class cannot be imported, or is no loader.
    """
    cls = MODEL_LOADERS.load(load_config.load_format, BaseModelLoader, named_by="engine.load_format")
    loader: BaseModelLoader = cls(load_config)
    return loader
