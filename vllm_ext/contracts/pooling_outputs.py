"""What a pooling model gives back to its user. Names are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class PoolingOutput:
    """``data``: float32, in host memory: ``[dimensions]`` or ``[classes]``; with a first dimension ``[tokens]`` where
    it is of each token."""

    data: torch.Tensor


@dataclass(slots=True)
class EmbeddingOutput:
    """A vector for a prompt."""

    embedding: list[float]

    @classmethod
    def from_base(cls, pooled: PoolingOutput) -> Self:
        """Of ``pooled``, whose ``data`` is float32 ``[dimensions]``."""
        return cls(pooled.data.tolist())

    @property
    def hidden_size(self) -> int:
        """Numbers in the vector."""
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    """A probability for each class, in the order of the model's labels."""

    probs: list[float]

    @classmethod
    def from_base(cls, pooled: PoolingOutput) -> Self:
        """Of ``pooled``, whose ``data`` is float32 ``[classes]``."""
        return cls(pooled.data.tolist())

    @property
    def num_classes(self) -> int:
        """Classes that the model tells apart."""
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts belong together: of a cross-encoder its score, else the cosine of their embeddings."""

    score: float


T = TypeVar("T")


@dataclass(slots=True)
class PoolingRequestOutput(Generic[T]):
    """One prompt and what became of it: ``outputs`` is a :class:`PoolingOutput`, one of the forms made of it, or what
    an IO processor returned."""

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    """Tokens of the prompt that were in the prefix cache, and so were not computed for this request."""
    finished: bool = True


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """Of :meth:`LLM.embed`."""


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """Of :meth:`LLM.classify`."""


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """Of :meth:`LLM.score`."""
