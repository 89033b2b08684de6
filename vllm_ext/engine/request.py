"""A request as the engine core sees it: tokens, how many of them are computed, and how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vllm_ext.contracts.outputs import FinishReason, LogprobsLists
from vllm_ext.contracts.sampling_params import SamplingParams


class RequestStatus(enum.Enum):
    """Where a request stands; a finished one has a :attr:`finish_reason`."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    PREEMPTED = enum.auto()
    FINISHED_STOPPED = enum.auto()
    FINISHED_LENGTH_CAPPED = enum.auto()
    FINISHED_ABORTED = enum.auto()

    @property
    def finish_reason(self) -> FinishReason | None:
        """vLLM's word for the user; ``None`` while the request goes on."""
        return _FINISH_REASONS.get(self)


_FINISH_REASONS: dict[RequestStatus, FinishReason] = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH_CAPPED: "length",
    RequestStatus.FINISHED_ABORTED: "abort",
}


@dataclass(slots=True)
class EngineCoreOutput:
    """What one step added to one request."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    """The id in ``stop_token_ids`` that ended the request."""
    new_logprobs: LogprobsLists | None = None
    """Of ``new_token_ids``, and perhaps of more."""
    new_prompt_logprobs: LogprobsLists | None = None
    """Of all the prompt's tokens but the first; with the first new token."""


class Request:
    """One prompt on its way to its completion.

    Args:
        request_id: unique among the requests in flight.
        prompt_token_ids: at least one token id.
        sampling_params: how tokens are chosen and when to stop.
        eos_token_ids: end-of-sequence tokens of the model.
    """

    __slots__ = (
        "_eos_token_ids",
        "_max_tokens",
        "_stop_token_ids",
        "all_token_ids",
        "num_computed_tokens",
        "num_prompt_tokens",
        "request_id",
        "sampling_params",
        "status",
        "stop_reason",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        sampling_params: SamplingParams,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.request_id = request_id
        self.sampling_params = sampling_params
        self.status = RequestStatus.WAITING
        self.all_token_ids = list(prompt_token_ids)
        """The prompt, then what was generated."""
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        """Tokens whose keys and values are in the cache, counting those of the step that is running."""
        self.stop_reason: int | None = None
        self._eos_token_ids = frozenset() if sampling_params.ignore_eos else eos_token_ids
        self._stop_token_ids = frozenset(sampling_params.stop_token_ids or ())
        self._max_tokens = sampling_params.max_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.all_token_ids) - self.num_prompt_tokens

    def append_token(self, token_id: int, max_total_tokens: int) -> bool:
        """Add a generated token; True if it ended the request, whose status then says how.

        ``max_total_tokens`` limits prompt and output together.
        """
        self.all_token_ids.append(token_id)
        if token_id in self._eos_token_ids:
            self.status = RequestStatus.FINISHED_STOPPED
        elif token_id in self._stop_token_ids:
            self.status = RequestStatus.FINISHED_STOPPED
            self.stop_reason = token_id
        elif self.num_tokens >= max_total_tokens or self.num_output_tokens == self._max_tokens:
            self.status = RequestStatus.FINISHED_LENGTH_CAPPED
        else:
            return False
        return True

    def __repr__(self) -> str:
        return (
            f"<Request {self.request_id!r} {self.status.name}: {self.num_prompt_tokens} + {self.num_output_tokens} "
            f"tokens, {self.num_computed_tokens} computed>"
        )
