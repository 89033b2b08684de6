"""The IO processor contract (vLLM's ``vllm.plugins.io_processors``): from a user's data to prompts, and back."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vllm_ext.errors import dotted_path

if TYPE_CHECKING:
    from vllm_ext.contracts.tokenizer import TokenizerLike
    from vllm_ext.contracts.vllm_config import VllmConfig

CONSTRUCTOR_ARGUMENTS = ("vllm_config", "renderer")

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Renderer:
    """What an IO processor may use of the engine to write its prompts. vLLM: ``BaseRenderer``."""

    tokenizer: TokenizerLike
    """The model's, which may be called from any thread."""

    def get_tokenizer(self) -> TokenizerLike:
        """The same."""
        return self.tokenizer


class IOProcessor(ABC, Generic[In, Out]):
    """Base of IO processors; the entry point in ``vllm.io_processor_plugins`` returns the class path of a subclass.
    vLLM: ``IOProcessor``.

    An engine has one, made when it starts, and calls it for each request ``{"data": data}`` in this order:
    :meth:`parse_data`, :meth:`pre_process`, :meth:`merge_pooling_params` or :meth:`merge_sampling_params`, then the
    model, then :meth:`post_process`. Several requests may be between two of these calls at a time: what is kept of one
    belongs under its ``request_id``, which no other request in flight has. An async engine calls methods that are not
    async one at a time in a thread of its own, and awaits :meth:`pre_process_async` and :meth:`post_process_async` in
    the event loop where they are overridden.

    A ValueError before the model refuses the request with its text. Whatever else is raised ends the request with an
    error that names the plugin and the method; other requests go on.

    Args:
        vllm_config: the engine's configuration; only to be read.
        renderer: a :class:`Renderer`.
    """

    def __init__(self, vllm_config: VllmConfig, renderer: Any = None) -> None:
        self.vllm_config = vllm_config
        self.renderer = renderer

    def parse_data(self, data: object) -> In:
        """The request's ``data`` in this processor's own type. An older processor may call it ``parse_request``, which
        is deprecated, to be removed in vllm_ext 0.3.0.

        Raises:
            ValueError: to be raised where the data does not fit; the user gets its text.
            NotImplementedError: the class has neither.
        """
        parse_request = getattr(self, "parse_request", None)
        if parse_request is None:
            raise NotImplementedError(f"{type(self).__qualname__} does not implement parse_data()")
        _warn_of_old_name(type(self))
        parsed: In = parse_request(data)
        return parsed

    def merge_sampling_params(self, params: Any = None) -> Any:
        """Sampling parameters for the prompts of a request, or a list with those of each.

        Args:
            params: what the user gave for the request, a ``SamplingParams``; ``None`` for nothing.

        Returns: by default ``params``; ``None`` is what the model directory asks for.
        """
        return params

    def merge_pooling_params(self, params: Any = None) -> Any:
        """Pooling parameters for the prompts of a request, or a list with those of each.

        Args:
            params: what the user gave for the request, a ``PoolingParams``; ``None`` for nothing.

        Returns: by default ``params``, or those of the task ``plugin``, which is what the model is for.
        """
        from vllm_ext.contracts.pooling_params import PoolingParams

        return PoolingParams(task="plugin") if params is None else params

    @abstractmethod
    def pre_process(self, prompt: In, request_id: str | None = None, **kwargs: Any) -> Any:
        """The prompt for the model, or a list of prompts.

        Args:
            prompt: what :meth:`parse_data` returned.
            request_id: of this request; :meth:`post_process` gets the same.

        Returns: a text, a list of token ids, ``{"prompt": text}``, ``{"prompt_token_ids": ids}``, or a list of these,
            with one prompt at least.
        """

    async def pre_process_async(self, prompt: In, request_id: str | None = None, **kwargs: Any) -> Any:
        """Like :meth:`pre_process`, which it calls."""
        return self.pre_process(prompt, request_id, **kwargs)

    @abstractmethod
    def post_process(self, outputs: Sequence[Any], request_id: str | None = None, **kwargs: Any) -> Out:
        """What the user gets.

        Args:
            outputs: of the model, in the order of the prompts: each a ``PoolingRequestOutput`` with a ``PoolingOutput``
                or, of a model that generates, a ``RequestOutput``.
            request_id: of this request.
        """

    async def post_process_async(self, outputs: Sequence[Any], request_id: str | None = None, **kwargs: Any) -> Out:
        """Like :meth:`post_process`, which it calls."""
        return self.post_process(outputs, request_id, **kwargs)

    def discard(self, request_id: str) -> None:
        """Forget what is kept of a request that ends without :meth:`post_process`, or in it: it failed or was aborted.
        Does nothing by default. Called at any time after :meth:`pre_process` began. An extension of vLLM's contract.
        """


def _warn_of_old_name(cls: type[Any]) -> None:
    warnings.warn(
        f"IO processor {dotted_path(cls)} implements parse_request(), an older name of parse_data(), "
        "which vllm_ext 0.3.0 removes; use parse_data()",
        DeprecationWarning,
        stacklevel=3,
    )
