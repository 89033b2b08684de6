"""What the sampler needs to know of one step's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vllm_ext.contracts.logits_processor import LogitsProcessor


@dataclass(frozen=True, slots=True)
class Penalties:
    """Of the rows that have any; see :func:`vllm_ext.worker.sampling.ops.apply_penalties` for shapes."""

    rows: torch.Tensor
    """int64 ``[penalized rows]``"""
    token_ids: torch.Tensor
    is_output: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    repetition: torch.Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """Of the rows that draw a token; arrays are in host memory."""

    rows: npt.NDArray[np.int64]
    """``[drawing rows]``: which rows of the logits they are."""
    temperature: npt.NDArray[np.float32]
    """``[drawing rows]``"""
    top_k: npt.NDArray[np.int64]
    """``[drawing rows]``; below 1 is off."""
    top_p: npt.NDArray[np.float32]
    """``[drawing rows]``; 1 is off."""
    seeds: npt.NDArray[np.uint64]
    """``[drawing rows]``"""
    is_seeded: npt.NDArray[np.bool_]
    """``[drawing rows]``"""
    num_output_tokens: npt.NDArray[np.int64]
    """``[drawing rows]``: tokens generated before this one; a seeded row draws by seed and count."""


@dataclass(frozen=True, slots=True)
class SamplingMetadata:
    """How to choose a token for each of ``num_rows`` rows.

    The processors' state is that of these rows.
    """

    num_rows: int
    processors: Sequence[LogitsProcessor]
    """Those that can change the likeliest token."""
    argmax_invariant: Sequence[LogitsProcessor]
    """The others, applied after the temperature; empty where no row draws."""
    penalties: Penalties | None
    choice: Choice | None
    """``None`` where every row takes the likeliest token."""
    num_logprobs: dict[int, int]
    """By row, where log probabilities were asked for."""
