"""The arithmetic of sampling on rows of logits: penalties, top-k, top-p, and the draw itself.

The last three are one compiled kernel on processors. In torch they are here for every other device, and as what the
kernel has to equal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from vllm_ext import _custom_ops
from vllm_ext.worker.sampling.metadata import Choice

_NEVER = float("-inf")
_FIRST_WIDTH = 256
"""Likeliest tokens among which the top p are looked for first: finding them is far cheaper than a sort."""


def apply_penalties(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    is_output: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
    repetition: torch.Tensor,
) -> torch.Tensor:
    """Repetition, frequency and presence penalty, in vLLM's order, in place. Only logits of tokens that a request has
    are touched, so that the cost follows its length and not the vocabulary.

    The first equals transformers' ``RepetitionPenaltyLogitsProcessor`` (https://arxiv.org/abs/1909.05858) over prompt
    and output; the other two are OpenAI's, over the output alone.

    Args:
        logits: float32 ``[rows, vocabulary]``.
        token_ids: int64 ``[rows, tokens]``: prompt, then output; the rest of a row repeats its last token.
        is_output: bool ``[rows, tokens]``: False in the prompt and in the rest.
        presence, frequency, repetition: float32 ``[rows, 1]``.
    """
    scores = logits.gather(1, token_ids)
    logits.scatter_(1, token_ids, torch.where(scores > 0, scores / repetition, scores * repetition))
    logits.scatter_add_(1, token_ids, torch.where(is_output, -frequency, 0.0))
    # Each occurrence writes the same value; a row without output loses nothing.
    output_ids = torch.where(is_output, token_ids, token_ids[:, -1:])
    presence = torch.where(is_output.any(dim=1, keepdim=True), presence, 0.0)
    return logits.scatter_(1, output_ids, logits.gather(1, output_ids) - presence)


def apply_top_k(logits: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Make all but the ``top_k`` likeliest tokens impossible, in place; a tie with the last of them stays.

    Equal to transformers' ``TopKLogitsWarper``. ``logits`` is ``[rows, vocabulary]``, ``top_k`` int64 ``[rows, 1]``.
    """
    top_k = top_k.clamp(max=logits.shape[1])
    best = logits.topk(int(top_k.max()), dim=-1).values
    return logits.masked_fill_(logits < best.gather(1, top_k - 1), _NEVER)


def apply_top_p(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the fewest likeliest tokens whose probabilities together reach ``top_p``, in place.

    Equal to transformers' ``TopPLogitsWarper``, up to which of several equal logits are kept. ``logits`` is float32
    ``[rows, vocabulary]``, ``top_p`` float32 ``[rows, 1]``.
    """
    probs = logits.softmax(dim=-1)
    width = min(_FIRST_WIDTH, logits.shape[1])
    best, token_ids = probs.topk(width, dim=-1)
    sums = best.cumsum(dim=-1)
    if width < logits.shape[1] and bool((sums[:, -1:] < top_p).any()):
        best, token_ids = probs.sort(dim=-1, descending=True)
        sums = best.cumsum(dim=-1)
    # Not by "<": where NaN leaves no probabilities, everything stays.
    keep = ~(sums - best >= top_p)
    keep[:, 0] = True
    impossible = torch.ones_like(logits, dtype=torch.bool).scatter_(1, token_ids, ~keep)
    return logits.masked_fill_(impossible, _NEVER)


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The first index of each row's largest value, or of a NaN: int64 ``[rows]``."""
    if logits.is_cpu and logits.stride(1) == 1 and _custom_ops.are_usable(logits.dtype):
        return _custom_ops.argmax(logits)
    if logits.is_cpu:
        # In host memory numpy is ten times as fast.
        return torch.from_numpy(logits.float().numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def draw_tokens(logits: torch.Tensor, choice: Choice, uniform: npt.NDArray[np.float64]) -> torch.Tensor:
    """A token for each of ``choice.rows``, drawn after temperature, top-k and top-p; the likeliest one where NaN or
    infinity leave no probabilities.

    Args:
        logits: float32 ``[rows, vocabulary]``; may be changed in place.
        uniform: float64 ``[drawing rows]``, in [0, 1): see :func:`draw`.

    Returns: int64 ``[drawing rows]``.
    """
    is_readable = logits.is_cpu and logits.dtype is torch.float32 and logits.stride(1) == 1
    if is_readable and _custom_ops.why_missing() is None:
        arrays = (choice.rows, choice.temperature, choice.top_k, choice.top_p, uniform)
        return _custom_ops.draw_tokens(logits, *map(torch.from_numpy, arrays))
    return draw_tokens_native(logits, choice, uniform)


def draw_tokens_native(logits: torch.Tensor, choice: Choice, uniform: npt.NDArray[np.float64]) -> torch.Tensor:
    """:func:`draw_tokens` in plain torch."""
    rows, temperature, numbers = (
        torch.from_numpy(array).to(logits.device) for array in (choice.rows, choice.temperature, uniform)
    )
    if len(choice.rows) < logits.shape[0]:
        logits = logits.index_select(0, rows)
    likeliest = most_likely(logits)
    logits.div_(temperature.unsqueeze(1))
    _keep_top(logits, choice)
    drawn = draw(logits, numbers)
    return torch.where(drawn < logits.shape[1], drawn, likeliest)


def _keep_top(logits: torch.Tensor, choice: Choice) -> None:
    """Apply top-k, then top-p, to the rows that have them, in place."""
    for is_on, values, apply in (
        (choice.top_k > 0, choice.top_k, apply_top_k),
        (choice.top_p < 1, choice.top_p, apply_top_p),
    ):
        if is_on.all():
            apply(logits, torch.from_numpy(values).to(logits.device).unsqueeze(1))
        elif is_on.any():
            rows = torch.from_numpy(np.flatnonzero(is_on)).to(logits.device)
            limits = torch.from_numpy(values[is_on]).to(logits.device).unsqueeze(1)
            logits.index_copy_(0, rows, apply(logits.index_select(0, rows), limits))


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the running sum of the probabilities passes ``uniform``, for each row; ``vocabulary`` where
    they are NaN.

    The sum runs in the order of the vocabulary: logits that differ by a rounding then move its steps by no more than
    a rounding, so that a request draws the same token in batches of any size.

    Args:
        logits: float32 ``[rows, vocabulary]``.
        uniform: float64 ``[rows]``, in [0, 1).
    """
    total = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # Below the last sum even after rounding, so that a token of probability 0 at the end is never taken.
    last = total[:, -1:]
    target = torch.minimum(uniform.unsqueeze(1) * last, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(total, target, right=True).squeeze(1)


def seeded_uniform(seeds: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Number ``counts[i]`` of the random sequence ``seeds[i]``, in [0, 1), for each row.

    SplitMix64 (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195) reaches any number of its sequence at
    once, so that nothing has to be kept for a request. float64 ``[rows]``.
    """
    word = seeds + (counts.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53
