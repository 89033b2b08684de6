"""From logits to tokens, for a whole batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vllm_ext.contracts.custom_op import PluggableLayer
from vllm_ext.contracts.outputs import LogprobsLists
from vllm_ext.worker import sampling_ops as ops
from vllm_ext.worker.logprobs import ALL, gather_logprobs, take_row
from vllm_ext.worker.sampling_metadata import Choice, Penalties, SamplingMetadata


class SamplerOutput(NamedTuple):
    """A token for each row."""

    token_ids: torch.Tensor
    """int64 ``[rows]``, on the device of the logits."""
    logprobs: dict[int, LogprobsLists]
    """By row, where they were asked for."""


@PluggableLayer.register("sampler")
class Sampler(PluggableLayer):
    """Chooses tokens in vLLM's order: processors, penalties, then the likeliest token where the temperature is 0, or a
    draw after temperature, ``min_p``, ``top_k`` and ``top_p``. Log probabilities are those of the logits as they come.
    vLLM: ``Sampler``.

    Args:
        seed: of the random numbers of requests without a seed of their own.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, logits: torch.Tensor, metadata: SamplingMetadata | None = None) -> SamplerOutput:
        """Choose a token per row.

        Args:
            logits: ``[rows, vocabulary]``, floating-point; may be changed in place.
            metadata: of the rows; ``None`` where all of them take the likeliest token and ask for nothing else.
        """
        if metadata is None:
            return SamplerOutput(ops.most_likely(logits), {})
        scored = list(metadata.num_logprobs)
        raw = logits[scored] if scored else None
        logits = self.process_logits(logits.float(), metadata)
        token_ids = ops.most_likely(logits)
        if metadata.choice is not None:
            self._choose(logits, metadata, metadata.choice, token_ids)
        if raw is None:
            return SamplerOutput(token_ids, {})
        return SamplerOutput(token_ids, _logprobs(raw, token_ids[scored], metadata.num_logprobs))

    def process_logits(self, logits: torch.Tensor, metadata: SamplingMetadata) -> torch.Tensor:
        """The logits that the likeliest token is taken of. An extension of vLLM's contract.

        Args:
            logits: float32 ``[rows, vocabulary]``; changed in place.
            metadata: of the rows.

        Returns: float32 ``[rows, vocabulary]``: ``logits``, or what a processor put in its place.
        """
        for processor in metadata.processors:
            logits = processor.apply(logits)
        if metadata.penalties is not None:
            _penalize(logits, metadata.penalties)
        return logits

    def _choose(
        self, logits: torch.Tensor, metadata: SamplingMetadata, choice: Choice, token_ids: torch.Tensor
    ) -> None:
        """Replace the likeliest token of the rows that draw one."""
        rows = torch.from_numpy(choice.rows).to(logits.device)
        temperature = torch.from_numpy(choice.temperature).to(logits.device).unsqueeze(1)
        if metadata.argmax_invariant:
            # They know the rows of the whole batch.
            logits.index_copy_(0, rows, logits.index_select(0, rows).div_(temperature))
            for processor in metadata.argmax_invariant:
                logits = processor.apply(logits)
            logits = logits.index_select(0, rows)
        elif len(choice.rows) == metadata.num_rows:
            logits = logits.div_(temperature)
        else:
            logits = logits.index_select(0, rows).div_(temperature)
        _keep_top(logits, choice)
        drawn = ops.draw(logits, torch.from_numpy(self._uniform(choice)).to(logits.device))
        # NaN and infinite logits are no probabilities: then the most likely token, which does exist.
        token_ids[rows] = torch.where(drawn < logits.shape[1], drawn, token_ids[rows])

    def _uniform(self, choice: Choice) -> np.ndarray:
        """A number from [0, 1) per row: float64."""
        if choice.is_seeded.all():
            return ops.seeded_uniform(choice.seeds, choice.num_output_tokens)
        unseeded = torch.rand(len(choice.rows), dtype=torch.float64, generator=self._generator).numpy()
        if not choice.is_seeded.any():
            return unseeded
        return np.where(choice.is_seeded, ops.seeded_uniform(choice.seeds, choice.num_output_tokens), unseeded)


def _penalize(logits: torch.Tensor, penalties: Penalties) -> None:
    values = (penalties.token_ids, penalties.is_output, penalties.presence, penalties.frequency, penalties.repetition)
    if len(penalties.rows) == logits.shape[0]:
        ops.apply_penalties(logits, *values)
    else:
        logits.index_copy_(0, penalties.rows, ops.apply_penalties(logits.index_select(0, penalties.rows), *values))


def _keep_top(logits: torch.Tensor, choice: Choice) -> None:
    """Apply top-k, then top-p, to the rows that have them, in place."""
    for is_on, values, apply in (
        (choice.top_k > 0, choice.top_k, ops.apply_top_k),
        (choice.top_p < 1, choice.top_p, ops.apply_top_p),
    ):
        if is_on.all():
            apply(logits, torch.from_numpy(values).to(logits.device).unsqueeze(1))
        elif is_on.any():
            rows = torch.from_numpy(np.flatnonzero(is_on)).to(logits.device)
            limits = torch.from_numpy(values[is_on]).to(logits.device).unsqueeze(1)
            logits.index_copy_(0, rows, apply(logits.index_select(0, rows), limits))


def _logprobs(raw: torch.Tensor, token_ids: torch.Tensor, num_logprobs: dict[int, int]) -> dict[int, LogprobsLists]:
    most = ALL if ALL in num_logprobs.values() else max(num_logprobs.values())
    lists = gather_logprobs(raw, token_ids, most)
    return {row: take_row(lists, i, count) for i, (row, count) in enumerate(num_logprobs.items())}
