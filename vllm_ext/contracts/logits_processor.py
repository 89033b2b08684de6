"""The logits processor contract (vLLM's ``vllm.v1.sample.logits_processor``): changes of a batch's logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.contracts.vllm_config import VllmConfig


class LogitsProcessor(ABC):
    """Base of logits processors; the entry point in ``vllm.logits_processors`` is a subclass.

    Args:
        vllm_config: the engine's configuration; not to be changed.
        device: where logits are.
        is_pin_memory: whether host memory for transfers is to be pinned.
    """

    @abstractmethod
    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None: ...

    @classmethod  # noqa: B027 - optional
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ``ValueError`` for parameters that this processor cannot serve; the default accepts all."""

    @abstractmethod
    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits to sample from: ``[requests, vocabulary]``, floating point; may be changed in place."""

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether the likeliest token never changes, so that greedy requests can leave this processor out."""

    @abstractmethod
    def update_state(self, batch_update: Any | None) -> None:
        """Follow requests that joined, left or moved since the last step; ``None`` where nothing changed."""
