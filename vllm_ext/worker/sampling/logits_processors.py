"""The in-tree logits processors: each keeps state only for the rows whose requests use its parameter.

They follow vLLM's batch-level interface, so that processors of plugins can stand beside them. Definitions are vLLM's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch

from vllm_ext.contracts.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

if TYPE_CHECKING:
    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.contracts.vllm_config import VllmConfig

StateT = TypeVar("StateT")
_NEVER = float("-inf")


class RowLogitsProcessor(LogitsProcessor, Generic[StateT]):
    """A processor with a state for some of the rows."""

    argmax_invariant: ClassVar[bool] = False

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool = False) -> None:
        self.device = device
        self.rows: dict[int, StateT] = {}

    def is_argmax_invariant(self) -> bool:
        return self.argmax_invariant

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if process_dict_updates(self.rows, batch_update, lambda params, _, output: self.state_of(params, output)):
            self.rebuild()

    @abstractmethod
    def state_of(self, params: SamplingParams, output_token_ids: list[int]) -> StateT | None:
        """The state of a request; ``None`` where it does not use the parameter."""

    @abstractmethod
    def rebuild(self) -> None:
        """Make the tensors that :meth:`apply` uses, since :attr:`rows` has changed."""

    def _long(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _cells(self, token_ids: dict[int, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Two int64 index tensors: a row and a token id for each token id of each row."""
        rows = [row for row, ids in token_ids.items() for _ in ids]
        return self._long(rows), self._long([token_id for ids in token_ids.values() for token_id in ids])


class AllowedTokenIdsLogitsProcessor(RowLogitsProcessor[list[int]]):
    """``allowed_token_ids``: every other token becomes impossible."""

    def state_of(self, params: SamplingParams, output_token_ids: list[int]) -> list[int] | None:
        return params.allowed_token_ids

    def rebuild(self) -> None:
        self._allowed = self._cells(self.rows)
        self._limited = self._long(list(self.rows))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.rows:
            kept = logits[self._allowed]
            logits.index_fill_(0, self._limited, _NEVER)
            logits[self._allowed] = kept
        return logits


class BadWordsLogitsProcessor(RowLogitsProcessor[tuple[list[int], tuple[tuple[int, ...], ...]]]):
    """``bad_words``: the last token of a word becomes impossible where the output ends with the tokens before it."""

    def state_of(
        self, params: SamplingParams, output_token_ids: list[int]
    ) -> tuple[list[int], tuple[tuple[int, ...], ...]] | None:
        words = params.bad_words_token_ids
        return (output_token_ids, words) if words else None

    def rebuild(self) -> None:
        """Nothing: which words are about to be completed changes with every token."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        banned = {
            row: [word[-1] for word in words if ends_with(output, word[:-1])]
            for row, (output, words) in self.rows.items()
        }
        if any(banned.values()):
            logits[self._cells(banned)] = _NEVER
        return logits


class MinTokensLogitsProcessor(RowLogitsProcessor[tuple[list[int], int, frozenset[int]]]):
    """``min_tokens``: until there are so many, tokens that would end the request are impossible."""

    def state_of(
        self, params: SamplingParams, output_token_ids: list[int]
    ) -> tuple[list[int], int, frozenset[int]] | None:
        if len(output_token_ids) >= params.min_tokens:
            return None
        return output_token_ids, params.min_tokens, params.all_stop_token_ids

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        super().update_state(batch_update)
        done = [row for row, (output, min_tokens, _) in self.rows.items() if len(output) >= min_tokens]
        for row in done:
            del self.rows[row]
        if done:
            self.rebuild()

    def rebuild(self) -> None:
        self._stopping = self._cells({row: stop_token_ids for row, (_, _, stop_token_ids) in self.rows.items()})

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.rows:
            logits[self._stopping] = _NEVER
        return logits


class LogitBiasLogitsProcessor(RowLogitsProcessor[dict[int, float]]):
    """``logit_bias``: what is added to the logits of some tokens."""

    def state_of(self, params: SamplingParams, output_token_ids: list[int]) -> dict[int, float] | None:
        return params.logit_bias or None

    def rebuild(self) -> None:
        self._biased = self._cells(self.rows)
        values = [bias for biases in self.rows.values() for bias in biases.values()]
        self._bias = torch.tensor(values, dtype=torch.float32, device=self.device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.rows:
            logits[self._biased] += self._bias
        return logits


class MinPLogitsProcessor(RowLogitsProcessor[float]):
    """``min_p``: tokens below this share of the likeliest token's probability become impossible.

    Equal to transformers' ``MinPLogitsWarper`` on the same logits.
    """

    argmax_invariant = True

    def state_of(self, params: SamplingParams, output_token_ids: list[int]) -> float | None:
        return params.min_p or None

    def rebuild(self) -> None:
        self._limited = self._long(list(self.rows))
        self._min_p = torch.tensor(list(self.rows.values()), dtype=torch.float32, device=self.device).unsqueeze(1)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.rows:
            limited = logits.index_select(0, self._limited)
            probs = limited.softmax(dim=-1, dtype=torch.float32)
            too_small = probs < self._min_p * probs.amax(dim=-1, keepdim=True)
            logits.index_copy_(0, self._limited, limited.masked_fill_(too_small, _NEVER))
        return logits


IN_TREE: tuple[type[RowLogitsProcessor], ...] = (
    AllowedTokenIdsLogitsProcessor,
    BadWordsLogitsProcessor,
    MinTokensLogitsProcessor,
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
)
"""In the order in which they are applied."""


def ends_with(token_ids: Sequence[int], end: tuple[int, ...]) -> bool:
    """Whether the last of ``token_ids`` are ``end``, which may be none."""
    return not end or tuple(token_ids[-len(end) :]) == end
