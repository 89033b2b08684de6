"""The sampling parameters of the requests that a worker knows, in arrays, and one step's share of them."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.errors import EngineError
from vllm_ext.worker.sampling.batch_update import Arrival, make_batch_update
from vllm_ext.worker.sampling.metadata import Choice, Penalties, SamplingMetadata
from vllm_ext.worker.sampling.plugin_logits_processors import LogitsProcessors

IntArray = npt.NDArray[np.integer]

_SLOT = np.dtype(
    [
        ("request", np.int64),
        ("is_plain", np.bool_),
        ("draws", np.bool_),
        ("is_penalized", np.bool_),
        ("is_processed", np.bool_),
        ("is_scored", np.bool_),
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float32),
        ("is_seeded", np.bool_),
        ("seed", np.uint64),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("repetition", np.float32),
        ("num_logprobs", np.int64),
    ]
)


class SamplingBatch:
    """A row ("slot") for each known request; slots are those of the :class:`~vllm_ext.worker.input_batch.InputBatch`.

    Args:
        token_ids: ``[slots, tokens]``: the batch's own array, of which penalties are made.
        num_tokens, num_prompt_tokens: ``[slots]``, the batch's own too.
        processors: the logits processors.
    """

    def __init__(
        self,
        token_ids: IntArray,
        num_tokens: IntArray,
        num_prompt_tokens: IntArray,
        processors: LogitsProcessors,
        device: torch.device,
    ) -> None:
        self._token_ids, self._num_tokens, self._num_prompt_tokens = token_ids, num_tokens, num_prompt_tokens
        self._device = device
        every = [*processors.own, *processors.plugins]
        self._processors = [p for p in every if not p.is_argmax_invariant()]
        self._argmax_invariant = [p for p in every if p.is_argmax_invariant()]
        self._has_plugins = bool(processors.plugins)
        # Greedy requests leave those out that never change the likeliest token.
        self._plugins_concern_greedy = not all(p.is_argmax_invariant() for p in processors.plugins)
        self._table = np.zeros(len(num_tokens), dtype=_SLOT)
        self._is_plain = self._table["is_plain"]
        self._params: dict[int, SamplingParams] = {}
        self._output_token_ids: dict[int, list[int]] = {}
        """By slot, for the requests that logits processors watch."""
        self._next_request = itertools.count()
        self._processed: list[int] = []
        """Which requests had the rows that the processors know."""

    def add(self, slot: int, params: SamplingParams, output_token_ids: list[int]) -> None:
        """Note a request's parameters, and the tokens that it has from before a preemption."""
        used = set(params.worker_params())
        is_penalized = bool(used & {"presence_penalty", "frequency_penalty", "repetition_penalty"})
        is_processed = bool(used & _PARAMS_OF_OWN) or (
            self._plugins_concern_greedy if params.is_greedy else self._has_plugins
        )
        is_scored = params.logprobs is not None
        self._table[slot] = (
            next(self._next_request),
            params.is_greedy and not (is_penalized or is_processed or is_scored),
            not params.is_greedy,
            is_penalized,
            is_processed,
            is_scored,
            params.temperature,
            params.top_k,
            params.top_p,
            params.seed is not None,
            (params.seed or 0) % 2**64,
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
            params.logprobs or 0,
        )
        if is_processed or self._has_plugins:
            # A plugin is told of every request that shares a batch with one that concerns it.
            self._params[slot] = params
            self._output_token_ids[slot] = output_token_ids

    def remove(self, slot: int) -> None:
        self._params.pop(slot, None)
        self._output_token_ids.pop(slot, None)

    def append_tokens(self, slots: IntArray, token_ids: IntArray) -> None:
        """Note one new token for each of ``slots``; the batch's own arrays have it already."""
        if self._output_token_ids:
            for slot, token_id in zip(slots.tolist(), token_ids.tolist(), strict=True):
                if (output := self._output_token_ids.get(slot)) is not None:
                    output.append(token_id)

    def metadata(self, slots: IntArray) -> SamplingMetadata | None:
        """How to choose tokens for these slots; ``None`` where each takes the likeliest token and asks for no more.

        It is good for one call of the sampler: the processors have this step's state.
        """
        if self._is_plain[slots].all():
            return None
        rows = self._table[slots]
        is_processed = bool(rows["is_processed"].any())
        self._update_processors(rows["request"].tolist() if is_processed else [], slots)
        draws = rows["draws"]
        any_draws = bool(draws.any())
        return SamplingMetadata(
            num_rows=len(slots),
            processors=self._processors if is_processed else (),
            argmax_invariant=self._argmax_invariant if is_processed and any_draws else (),
            penalties=self._penalties(slots, rows) if rows["is_penalized"].any() else None,
            choice=self._choice(slots, rows, np.flatnonzero(draws)) if any_draws else None,
            num_logprobs={int(row): int(rows["num_logprobs"][row]) for row in np.flatnonzero(rows["is_scored"])},
        )

    def _choice(self, slots: IntArray, rows: np.ndarray, drawing: npt.NDArray[np.int64]) -> Choice:
        of = rows[drawing]
        slots = slots[drawing]
        return Choice(
            rows=drawing,
            temperature=of["temperature"].copy(),
            top_k=of["top_k"].copy(),
            top_p=of["top_p"].copy(),
            seeds=of["seed"].copy(),
            is_seeded=of["is_seeded"].copy(),
            num_output_tokens=self._num_tokens[slots] - self._num_prompt_tokens[slots],
        )

    def _penalties(self, slots: IntArray, rows: np.ndarray) -> Penalties:
        penalized = np.flatnonzero(rows["is_penalized"])
        slots, of = slots[penalized], rows[penalized]
        num_tokens = self._num_tokens[slots, None]
        positions = np.arange(int(num_tokens.max()))
        token_ids = self._token_ids[slots[:, None], np.minimum(positions, num_tokens - 1)].astype(np.int64)
        is_output = (positions >= self._num_prompt_tokens[slots, None]) & (positions < num_tokens)
        columns = (of[name][:, None].copy() for name in ("presence", "frequency", "repetition"))
        return Penalties(*(torch.from_numpy(a).to(self._device) for a in (penalized, token_ids, is_output, *columns)))

    def _update_processors(self, requests: list[int], slots: IntArray) -> None:
        """Tell the processors which requests have this step's rows; none where no row needs them."""
        slot_of = dict(zip(requests, slots.tolist(), strict=False))
        update = make_batch_update(self._processed, requests, lambda request: self._arrival(slot_of[request]))
        if not requests and update is None:
            return
        # Where what follows is broken off, some processors have rows that others have not: the next update removes all,
        # since nobody has these numbers.
        self._processed = list(range(-max(len(self._processed), len(requests)), 0))
        errors: list[EngineError] = []
        for processor in itertools.chain(self._processors, self._argmax_invariant):
            try:
                processor.update_state(update)
            except EngineError as error:  # the others still follow: this update never comes again
                errors.append(error)
        self._processed = requests
        if errors:
            raise errors[0]

    def _arrival(self, slot: int) -> Arrival:
        params = self._params.get(slot)
        if params is None:
            return _UNPROCESSED, [], []
        prompt = self._token_ids[slot, : int(self._num_prompt_tokens[slot])].tolist()
        return params, prompt, self._output_token_ids[slot]


_PARAMS_OF_OWN = {"min_p", "min_tokens", "bad_words", "logit_bias", "allowed_token_ids"}

_UNPROCESSED = SamplingParams()
"""Stands for the parameters of a request that no processor is interested in."""
