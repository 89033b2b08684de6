"""From logits to tokens, for a whole batch."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from vllm_ext.contracts.custom_op import PluggableLayer
from vllm_ext.contracts.outputs import LogprobsLists
from vllm_ext.worker.sampling import ops
from vllm_ext.worker.sampling.logprobs import ALL, gather_logprobs, take_row
from vllm_ext.worker.sampling.metadata import Choice, Penalties, SamplingMetadata


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
        self._wide = torch.empty(0)

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
        logits = self.process_logits(self._widened(logits), metadata)
        token_ids = self._choose(logits, metadata)
        if raw is None:
            return SamplerOutput(token_ids, {})
        return SamplerOutput(token_ids, _logprobs(raw, token_ids[scored], metadata.num_logprobs))

    def _widened(self, logits: torch.Tensor) -> torch.Tensor:
        """The same in float32, which is valid until the next call: megabytes that came new from the system in each step
        would take longer than what is computed with them.
        """
        if logits.dtype is torch.float32:
            return logits
        if self._wide.numel() < logits.numel() or self._wide.device != logits.device:
            self._wide = torch.empty(logits.numel(), dtype=torch.float32, device=logits.device)
        return self._wide[: logits.numel()].view(logits.shape).copy_(logits)

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

    def _choose(self, logits: torch.Tensor, metadata: SamplingMetadata) -> torch.Tensor:
        """A token per row: int64 ``[rows]``."""
        choice = metadata.choice
        if choice is None:
            return ops.most_likely(logits)
        is_mixed = len(choice.rows) < metadata.num_rows
        token_ids = ops.most_likely(logits) if is_mixed else None
        if metadata.argmax_invariant:
            # They know the rows of the whole batch, and come after the temperature.
            rows, temperature = (torch.from_numpy(a).to(logits.device) for a in (choice.rows, choice.temperature))
            logits.index_copy_(0, rows, logits.index_select(0, rows).div_(temperature.unsqueeze(1)))
            for processor in metadata.argmax_invariant:
                logits = processor.apply(logits)
            choice = replace(choice, temperature=np.ones_like(choice.temperature))
        drawn = ops.draw_tokens(logits, choice, self._uniform(choice))
        if token_ids is None:
            return drawn
        token_ids[torch.from_numpy(choice.rows).to(logits.device)] = drawn
        return token_ids

    def _uniform(self, choice: Choice) -> np.ndarray:
        """A number from [0, 1) per row: float64."""
        if choice.is_seeded.all():
            return ops.seeded_uniform(choice.seeds, choice.num_output_tokens)
        unseeded = torch.rand(len(choice.rows), dtype=torch.float64, generator=self._generator, device="cpu").numpy()
        if not choice.is_seeded.any():
            return unseeded
        return np.where(choice.is_seeded, ops.seeded_uniform(choice.seeds, choice.num_output_tokens), unseeded)


def _penalize(logits: torch.Tensor, penalties: Penalties) -> None:
    values = (penalties.token_ids, penalties.is_output, penalties.presence, penalties.frequency, penalties.repetition)
    if len(penalties.rows) == logits.shape[0]:
        ops.apply_penalties(logits, *values)
    else:
        logits.index_copy_(0, penalties.rows, ops.apply_penalties(logits.index_select(0, penalties.rows), *values))


def _logprobs(raw: torch.Tensor, token_ids: torch.Tensor, num_logprobs: dict[int, int]) -> dict[int, LogprobsLists]:
    most = ALL if ALL in num_logprobs.values() else max(num_logprobs.values())
    lists = gather_logprobs(raw, token_ids, most)
    return {row: take_row(lists, i, count) for i, (row, count) in enumerate(num_logprobs.items())}
