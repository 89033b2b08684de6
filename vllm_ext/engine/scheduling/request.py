"""A request as the engine core sees it: tokens, how many of them are computed, and how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from vllm_ext.contracts.outputs import FinishReason, LogprobsLists, LogprobsTensors, ModelRunnerOutput
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.scheduling.block_hash import BlockHash

if TYPE_CHECKING:
    import torch


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


class TokenLogprobs(NamedTuple):
    """:class:`LogprobsLists` as plain values, which may cross to another process; a row for each token."""

    token_ids: list[list[int]]
    logprobs: list[list[float]]
    ranks: list[int]

    @classmethod
    def of(cls, lists: LogprobsLists | LogprobsTensors | None) -> Self | None:
        return None if lists is None else cls(*(column.tolist() for column in lists[:3]))

    def of_best(self, num_logprobs: int) -> Self:
        """Without those that come after the first ``num_logprobs`` of the likeliest; all are kept with -1."""
        if num_logprobs < 0:
            return self
        end = 1 + num_logprobs
        return self._replace(
            token_ids=[row[:end] for row in self.token_ids], logprobs=[row[:end] for row in self.logprobs]
        )


def sampled_logprobs(
    output: ModelRunnerOutput, position: int, num_tokens: int, request: Request
) -> TokenLogprobs | None:
    """Those of a request's new tokens, out of what a worker gives by request or for its batch; ``None`` where there are
    none.
    """
    logprobs = output.logprobs
    if isinstance(logprobs, dict):
        return TokenLogprobs.of(logprobs.get(request.request_id))
    wanted = None if request.sampling_params is None else request.sampling_params.logprobs
    if wanted is None:
        return None
    found = TokenLogprobs.of(logprobs.slice_request(position, num_tokens))
    return None if found is None else found.of_best(wanted)


class PooledResult(NamedTuple):
    """A result of pooling as plain values, which may cross to another process: float32 numbers and their shape."""

    data: bytes
    shape: list[int]

    @classmethod
    def of(cls, result: torch.Tensor) -> Self:
        return cls(result.float().contiguous().numpy().tobytes(), list(result.shape))


@dataclass(slots=True)
class EngineCoreOutput:
    """What one step added to one request."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    """The id in ``stop_token_ids`` that ended the request."""
    new_logprobs: TokenLogprobs | None = None
    """Of ``new_token_ids``, and perhaps of more."""
    new_prompt_logprobs: TokenLogprobs | None = None
    """Of all the prompt's tokens but the first; with the first new token."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that were in the prefix cache."""
    pooled: PooledResult | None = None
    """Of a pooling model; it is the only output of its request."""


class Request:
    """One prompt on its way to its completion.

    Args:
        request_id: unique among the requests in flight.
        prompt_token_ids: at least one token id.
        sampling_params: how tokens are chosen and when to stop; ``None`` for a pooling model.
        eos_token_ids: end-of-sequence tokens of the model.
        priority: lower values come first, where the scheduling policy is ``priority``.
        pooling_params: what is wanted of the prompt, for a pooling model.
    """

    __slots__ = (
        "_eos_token_ids",
        "_max_num_tokens",
        "_stop_token_ids",
        "all_token_ids",
        "block_hashes",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "num_slots",
        "pooling_params",
        "priority",
        "queue_key",
        "request_id",
        "sampling_params",
        "skip_reading_prefix_cache",
        "status",
        "stop_reason",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        sampling_params: SamplingParams | None,
        eos_token_ids: frozenset[int] = frozenset(),
        priority: int = 0,
        pooling_params: PoolingParams | None = None,
    ) -> None:
        self.request_id = request_id
        self.sampling_params = sampling_params
        self.pooling_params = pooling_params
        self.priority = priority
        self.queue_key = (0, 0)
        """Its place among all requests in flight, set when it is added: the smallest comes first."""
        self.status = RequestStatus.WAITING
        self.all_token_ids = list(prompt_token_ids)
        """The prompt, then what was generated."""
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        """Tokens whose keys and values are in the cache, counting those of the step that is running."""
        self.num_slots = 0
        """Tokens that its cache blocks have room for, or had before they were given back behind a sliding window."""
        self.num_cached_tokens = 0
        """Tokens that were in the prefix cache when the request was first admitted."""
        self.block_hashes: list[BlockHash] = []
        """Hashes of its first full blocks, as far as they were asked for."""
        # The states of a prompt's tokens are only there where they are computed.
        params = pooling_params if sampling_params is None else sampling_params
        self.skip_reading_prefix_cache = params is not None and bool(params.skip_reading_prefix_cache)
        self.stop_reason: int | None = None
        self._eos_token_ids: frozenset[int] = frozenset()
        self._stop_token_ids: frozenset[int] = frozenset()
        self._max_num_tokens: int | None = None
        if sampling_params is not None:
            self._set_ends(sampling_params, eos_token_ids)

    def _set_ends(self, params: SamplingParams, eos_token_ids: frozenset[int]) -> None:
        """Note what ends generation."""
        self._eos_token_ids = frozenset() if params.ignore_eos else eos_token_ids
        self._stop_token_ids = frozenset(params.stop_token_ids or ())
        self._max_num_tokens = None if params.max_tokens is None else self.num_prompt_tokens + params.max_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.all_token_ids) - self.num_prompt_tokens

    def append_tokens(self, token_ids: list[int], max_total_tokens: int) -> list[int]:
        """Add generated tokens up to the one that ends the request, whose status then says how; returns those added.

        ``max_total_tokens`` limits prompt and output together.
        """
        for position, token_id in enumerate(token_ids, 1):
            self.all_token_ids.append(token_id)
            num_tokens = len(self.all_token_ids)
            if token_id in self._eos_token_ids:
                self.status = RequestStatus.FINISHED_STOPPED
            elif token_id in self._stop_token_ids:
                self.status = RequestStatus.FINISHED_STOPPED
                self.stop_reason = token_id
            elif num_tokens >= max_total_tokens or num_tokens == self._max_num_tokens:
                self.status = RequestStatus.FINISHED_LENGTH_CAPPED
            else:
                continue
            return token_ids[:position]
        return token_ids

    def __repr__(self) -> str:
        return (
            f"<Request {self.request_id!r} {self.status.name}: {self.num_prompt_tokens} + {self.num_output_tokens} "
            f"tokens, {self.num_computed_tokens} computed>"
        )
