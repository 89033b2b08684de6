"""What replays a step that was recorded, instead of computing it op by op. In vLLM: ``AbstractStaticGraphWrapper``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.vllm_config import VllmConfig


class BatchDescriptor(NamedTuple):
    """Steps with equal descriptors have the same shapes, and their inputs stand at the same addresses. vLLM:
    ``BatchDescriptor``.
    """

    num_tokens: int
    """Of the step: one of each request, since only such steps are replayed."""
    uniform: bool = True
    """Whether all requests have equally many tokens."""


class AbstractStaticGraphWrapper(ABC):
    """Stands before a model, or a part of one, and is called like it. Which steps may be replayed, it reads in the
    forward context: those whose ``cudagraph_runtime_mode`` is its own, and each ``batch_descriptor`` by itself.

    Args:
        runnable: what is recorded; called as it is for all other steps.
        vllm_config: of the engine; only read.
        runtime_mode: ``FULL`` for the whole model.
        kwargs: what later versions of vLLM give.
    """

    def __init__(
        self, runnable: Callable[..., torch.Tensor], vllm_config: VllmConfig, runtime_mode: str, **kwargs: Any
    ) -> None:
        self.runnable = runnable
        self.vllm_config = vllm_config
        self.runtime_mode = runtime_mode

    def clear_graphs(self) -> None:  # noqa: B027 - optional
        """Forget what was recorded: weights may be in other memory now. An extension of vLLM's contract."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute a step, or replay it.

        Args:
            args, kwargs: of ``runnable``; tensors of equal descriptors are the same memory with other contents, and so
                are those of the attention metadata.

        Returns: what ``runnable`` returns; its memory may be written again by the next call.
        """
