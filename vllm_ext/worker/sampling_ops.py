"""The arithmetic of sampling on rows of logits: penalties, top-k, top-p, and the draw itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

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
    keep = sums - best < top_p
    keep[:, 0] = True
    impossible = torch.ones_like(logits, dtype=torch.bool).scatter_(1, token_ids, ~keep)
    return logits.masked_fill_(impossible, _NEVER)


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The first index of each row's largest value: int64 ``[rows]``."""
    if logits.is_cpu:
        # In host memory numpy is ten times as fast.
        return torch.from_numpy(logits.float().numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the running sum of the probabilities passes ``uniform``, for each row.

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
