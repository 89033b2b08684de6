"""The IO processor contract (vLLM's ``vllm.plugins.io_processors``): from a user's data to prompts, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import VllmConfig

In = TypeVar("In")
Out = TypeVar("Out")


class IOProcessor(ABC, Generic[In, Out]):
    """Base of IO processors; the entry point in ``vllm.io_processor_plugins`` returns the class path of a subclass.
    vLLM: ``IOProcessor``. What is not implemented raises NotImplementedError with the class and the method in its text.

    Args:
        vllm_config: the engine's configuration; not to be changed.
        renderer: what turns messages into prompts; ``None`` where there is none.
    """

    def __init__(self, vllm_config: VllmConfig, renderer: Any = None) -> None:
        self.vllm_config = vllm_config
        self.renderer = renderer

    def parse_data(self, data: object) -> In:
        """The request's ``data`` in this processor's own type; ValueError where it does not fit."""
        raise NotImplementedError(f"{type(self).__qualname__} does not implement parse_data()")

    def merge_sampling_params(self, params: Any = None) -> Any:
        """Sampling parameters for a request with ``params`` of its own; the default is those."""
        return params

    def merge_pooling_params(self, params: Any = None) -> Any:
        """Pooling parameters for a request with ``params`` of its own; the default is those."""
        return params

    @abstractmethod
    def pre_process(self, prompt: In, request_id: str | None = None, **kwargs: Any) -> Any:
        """The prompt, or the prompts, for the model. State for later is to be kept by ``request_id``."""

    async def pre_process_async(self, prompt: In, request_id: str | None = None, **kwargs: Any) -> Any:
        """Like :meth:`pre_process`, which it calls."""
        return self.pre_process(prompt, request_id, **kwargs)

    @abstractmethod
    def post_process(self, outputs: Sequence[Any], request_id: str | None = None, **kwargs: Any) -> Out:
        """What the user gets, from the model's outputs in the order of the prompts."""

    async def post_process_async(self, outputs: Sequence[Any], request_id: str | None = None, **kwargs: Any) -> Out:
        """Like :meth:`post_process`, which it calls."""
        return self.post_process(outputs, request_id, **kwargs)
