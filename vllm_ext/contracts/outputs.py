"""What a step gives back to the engine, and what the engine gives back to its user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclass(slots=True)
class ModelRunnerOutput:
    """What a worker returns for one step.

    ``sampled_token_ids[req_id_to_index[id]]`` holds the request's new tokens: one for a request whose prompt is
    complete, none for one that is still being prefilled.
    """

    req_ids: list[str]
    req_id_to_index: dict[str, int]
    sampled_token_ids: list[list[int]]


EMPTY_MODEL_RUNNER_OUTPUT = ModelRunnerOutput(req_ids=[], req_id_to_index={}, sampled_token_ids=[])


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a request; in a stream, what stands so far."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string or the stop token id that ended generation; ``None`` for end-of-sequence and length."""

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """The state of one request: its prompt and its completions."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    num_cached_tokens: int = 0
    """Tokens of the prompt that were in the prefix cache, and so were not computed for this request."""
