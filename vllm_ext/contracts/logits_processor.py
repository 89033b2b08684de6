"""The logits processor contract (vLLM's ``vllm.v1.sample.logits_processor``): changes of a batch's logits."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.contracts.vllm_config import VllmConfig


class MoveDirectionality(enum.Enum):
    """Whether two rows change places, or one goes to where nobody is."""

    UNIDIRECTIONAL = 0
    SWAP = 1


RemovedRequest: TypeAlias = int
"""The row that is free now."""
AddedRequest: TypeAlias = "tuple[int, SamplingParams, list[int], list[int]]"
"""Row, parameters, prompt token ids, and output token ids: a list that grows with the request."""
MovedRequest: TypeAlias = tuple[int, int, MoveDirectionality]
"""From row, to row."""


@dataclass(frozen=True, slots=True)
class BatchUpdate:
    """How the rows of the logits differ from those of the last update; to be followed in the order of the fields."""

    batch_size: int
    removed: Sequence[RemovedRequest]
    added: Sequence[AddedRequest]
    moved: Sequence[MovedRequest]


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
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that joined, left or moved since the last step; ``None`` where nothing changed."""
