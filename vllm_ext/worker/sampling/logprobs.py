"""Log probabilities of chosen tokens and of the likeliest ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from vllm_ext.contracts.outputs import LogprobsLists
from vllm_ext.contracts.scheduler_output import NewRequestData
from vllm_ext.errors import EngineError

ComputeLogits: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

ALL = -1
"""As a number of log probabilities: the whole vocabulary."""
_ROWS_AT_ONCE = 128
"""Rows of logits that a prompt's log probabilities may take at a time: they are as wide as the vocabulary."""


def gather_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_logprobs: int) -> LogprobsLists:
    """Log probabilities by ``logits`` of one token per row, and of the likeliest ones.

    Args:
        logits: ``[rows, vocabulary]``; computed with in float32.
        token_ids: int64 ``[rows]``.
        num_logprobs: of the likeliest tokens, at most all; :data:`ALL` for all.
    """
    vocab_size = logits.shape[1]
    logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
    own = logprobs.gather(1, token_ids.unsqueeze(1))
    ranks = (logprobs >= own).sum(dim=-1)
    best = logprobs.topk(vocab_size if num_logprobs == ALL else min(num_logprobs, vocab_size), dim=-1)
    return LogprobsLists(
        torch.cat([token_ids.unsqueeze(1), best.indices], dim=1).cpu().numpy(),
        torch.cat([own, best.values], dim=1).cpu().numpy(),
        ranks.cpu().numpy(),
    )


def take_row(lists: LogprobsLists, row: int, num_logprobs: int) -> LogprobsLists:
    """One row with the first ``num_logprobs`` of the likeliest tokens; they may have been gathered for more."""
    end = None if num_logprobs == ALL else 1 + num_logprobs
    token_ids, logprobs, ranks = lists[:3]
    return LogprobsLists(token_ids[row : row + 1, :end], logprobs[row : row + 1, :end], ranks[row : row + 1])


@dataclass(slots=True)
class _Prompt:
    """One prompt on its way: its tokens, and what was computed of their log probabilities."""

    token_ids: Sequence[int]
    num_logprobs: int
    num_computed: int = 0
    """Tokens whose hidden states have come."""
    chunks: list[LogprobsLists] = field(default_factory=list)


class PromptLogprobs:
    """Collects the log probabilities of prompts, which may be computed in chunks."""

    def __init__(self) -> None:
        self._prompts: dict[str, _Prompt] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether hidden states are expected."""
        return bool(self._prompts)

    def add(self, new: NewRequestData, num_logprobs: int) -> None:
        """Expect the hidden states of this request's prompt.

        Raises:
            EngineError: part of the prompt is not computed, since it is in the cache.
        """
        self._prompts[new.req_id] = _Prompt(new.prompt_token_ids, num_logprobs)
        self.restart(new.req_id, new.num_computed_tokens)

    def restart(self, req_id: str, num_computed_tokens: int) -> None:
        """Expect the hidden states of a prompt from its beginning, after a preemption; ids of which none are expected
        are passed over.

        Raises:
            EngineError: as of :meth:`add`.
        """
        if (prompt := self._prompts.get(req_id)) is None:
            return
        if num_computed_tokens:
            raise EngineError(
                f"request {req_id!r} asks for prompt_logprobs, and {num_computed_tokens} of its tokens come "
                "from the prefix cache; the scheduler must not read the cache where skip_reading_prefix_cache is set"
            )
        prompt.num_computed, prompt.chunks = 0, []

    def remove(self, req_id: str) -> None:
        """Forget a prompt; ids that are not known are passed over."""
        self._prompts.pop(req_id, None)

    def collect(
        self,
        req_ids: Sequence[str],
        query_start_loc: npt.NDArray[np.integer],
        hidden_states: torch.Tensor,
        compute_logits: ComputeLogits,
    ) -> dict[str, LogprobsLists]:
        """Take in one step's hidden states.

        Args:
            req_ids, query_start_loc: request ``i`` has the hidden states ``[loc[i], loc[i + 1])``.
            hidden_states: ``[tokens, hidden size]``.
            compute_logits: of hidden states ``[rows, hidden size]``: ``[rows, vocabulary]``.

        Returns: for each prompt that is complete now, log probabilities of all its tokens but the first.
        """
        complete: dict[str, LogprobsLists] = {}
        if not self._prompts:
            return complete
        starts = query_start_loc.tolist()
        for req_id, start, end in zip(req_ids, starts[:-1], starts[1:], strict=True):
            if (prompt := self._prompts.get(req_id)) is None:
                continue
            _score(prompt, hidden_states[start:end], compute_logits)
            if prompt.num_computed >= len(prompt.token_ids):
                complete[req_id] = _joined(prompt)
                del self._prompts[req_id]
        return complete


def _score(prompt: _Prompt, hidden_states: torch.Tensor, compute_logits: ComputeLogits) -> None:
    # A token's hidden state predicts the token after it; the last one's predicts no token of the prompt.
    targets = prompt.token_ids[prompt.num_computed + 1 : prompt.num_computed + 1 + len(hidden_states)]
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        token_ids = torch.tensor(targets[start : start + _ROWS_AT_ONCE], device=hidden_states.device)
        logits = compute_logits(hidden_states[start : start + len(token_ids)])
        prompt.chunks.append(gather_logprobs(logits, token_ids, prompt.num_logprobs))
    prompt.num_computed += len(hidden_states)


def _joined(prompt: _Prompt) -> LogprobsLists:
    if not prompt.chunks:
        # A prompt of one token.
        none = np.zeros((0, 1))
        return LogprobsLists(none.astype(np.int64), none.astype(np.float32), np.zeros(0, dtype=np.int64))
    token_ids, logprobs, ranks = zip(*(chunk[:3] for chunk in prompt.chunks), strict=True)
    return LogprobsLists(np.concatenate(token_ids), np.concatenate(logprobs), np.concatenate(ranks))
