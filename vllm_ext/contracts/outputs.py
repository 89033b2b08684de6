"""What a step gives back to the engine, and what the engine gives back to its user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

FinishReason = Literal["stop", "length", "abort"]


class LogprobsLists(NamedTuple):
    """Log probabilities of some tokens of one request, or of a batch, in host memory (vLLM's name).

    In row ``i``, column 0 is the token that stands there, and the others are the ``k`` likeliest tokens, best first.
    """

    logprob_token_ids: npt.NDArray[np.int64]
    """``[tokens, 1 + k]``"""
    logprobs: npt.NDArray[np.float32]
    """``[tokens, 1 + k]``"""
    sampled_token_ranks: npt.NDArray[np.int64]
    """``[tokens]``: how many tokens are at least as likely as the one in column 0, itself included."""
    cu_num_generated_tokens: list[int] | None = None
    """Of a batch: where the rows of each request begin; ``None`` where each has one row, in the order of the batch."""

    def slice_request(self, req_idx: int, num_positions: int) -> LogprobsLists:
        """The first ``num_positions`` rows of the batch's request ``req_idx``."""
        start = req_idx if self.cu_num_generated_tokens is None else self.cu_num_generated_tokens[req_idx]
        end = start + num_positions
        return LogprobsLists(
            self.logprob_token_ids[start:end], self.logprobs[start:end], self.sampled_token_ranks[start:end]
        )


class LogprobsTensors(NamedTuple):
    """:class:`LogprobsLists` as tensors on any device, as vLLM's model runners give those of a prompt."""

    logprob_token_ids: torch.Tensor
    """Integers ``[tokens, 1 + k]``"""
    logprobs: torch.Tensor
    """float32 ``[tokens, 1 + k]``"""
    selected_token_ranks: torch.Tensor
    """Integers ``[tokens]``"""
    cu_num_generated_tokens: list[int] | None = None

    def tolists(self, cu_num_generated_tokens: list[int] | None = None) -> LogprobsLists:
        """The same in host memory."""
        return LogprobsLists(
            self.logprob_token_ids.cpu().numpy(),
            self.logprobs.cpu().numpy(),
            self.selected_token_ranks.cpu().numpy(),
            cu_num_generated_tokens or self.cu_num_generated_tokens,
        )


@dataclass(slots=True)
class ModelRunnerOutput:
    """What a worker returns for one step. vLLM: ``ModelRunnerOutput``.

    ``sampled_token_ids[req_id_to_index[id]]`` holds the request's new tokens: one for a request whose prompt is
    complete, none for one that is still being prefilled.
    """

    req_ids: list[str]
    req_id_to_index: dict[str, int]
    sampled_token_ids: list[list[int]] = field(default_factory=list)
    logprobs: dict[str, LogprobsLists] | LogprobsLists = field(default_factory=dict)
    """Of the new tokens, for requests that asked for it, by request id; ``None``, vLLM's default, is taken for none. As
    in vLLM also one for the batch, with rows for every request in the order of ``req_ids`` and as many columns as the
    most that is asked for; each request gets its own."""
    prompt_logprobs_dict: Mapping[str, LogprobsLists | LogprobsTensors | None] = field(default_factory=dict)
    """Of the prompt's tokens but the first, by request id, in the step that completes the prompt."""
    pooler_output: list[torch.Tensor | None] = field(default_factory=list)
    """Of a pooling model, in the order of ``req_ids``: float32 in host memory; ``None`` while a prompt is not complete.
    Empty in a step of any other model; ``None``, vLLM's default, is taken for empty."""

    prompt_token_id_logprobs_dict: dict[str, Any] = field(default_factory=dict)
    kv_connector_output: Any = None
    ec_connector_output: Any = None
    num_nans_in_logits: dict[str, int] | None = None
    cudagraph_stats: Any = None
    aux_output_connector_output: dict[str, Any] | None = None
    sampling_masks: Any = None
    """vLLM's, with its defaults, from ``prompt_token_id_logprobs_dict`` on: the engine asks for none of it, and does
    not read it."""

    def __post_init__(self) -> None:
        # What is given and empty is kept: the worker may fill it later.
        self.logprobs = {} if self.logprobs is None else self.logprobs
        self.pooler_output = [] if self.pooler_output is None else self.pooler_output


EMPTY_MODEL_RUNNER_OUTPUT = ModelRunnerOutput(req_ids=[], req_id_to_index={}, sampled_token_ids=[])


class Logprob(NamedTuple):
    """How likely a token was.

    ``rank`` counts from 1; ``decoded_token`` is ``None`` without ``detokenize``.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


LogprobsOnePosition: TypeAlias = dict[int, Logprob]
"""The token of one position first, then the likeliest, by token id."""
SampleLogprobs: TypeAlias = list[LogprobsOnePosition]
PromptLogprobs: TypeAlias = list[LogprobsOnePosition | None]
"""``None`` for the first token, which nothing predicts."""


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a request; in a stream, what stands so far."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    """Sum of the log probabilities of ``token_ids``, where they were asked for."""
    logprobs: SampleLogprobs | None = None
    """For each of ``token_ids``, where they were asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string or the stop token id that ended generation; ``None`` for end-of-sequence and length."""
    lora_request: ClassVar[None] = None
    """vLLM's; the engine applies no adapters."""

    @property
    def finished(self) -> bool:
        """Whether this was the last of it: there is a ``finish_reason``."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """The state of one request: its prompt and its completions."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    num_cached_tokens: int = 0
    """Tokens of the prompt that were in the prefix cache, and so were not computed for this request."""
    metrics: ClassVar[None] = None
    """vLLM's, which has none either without statistics; here stat loggers get what was measured."""
    lora_request: ClassVar[None] = None
    """vLLM's; the engine applies no adapters."""
    encoder_prompt: ClassVar[None] = None
    encoder_prompt_token_ids: ClassVar[None] = None
    """vLLM's; a model of encoder and decoder is refused."""
    kv_transfer_params: ClassVar[None] = None
    """vLLM's; keys and values go to no other engine."""
