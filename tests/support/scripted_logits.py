"""A logits processor that leaves nothing of the model's logits: tokens follow from prompt and output alone."""

from __future__ import annotations

import zlib

import torch

from vllm_ext.contracts.logits_processor import AdapterLogitsProcessor
from vllm_ext.contracts.sampling_params import SamplingParams

FAVOURITES = 6
"""The first tokens come before all others, so that outputs repeat themselves."""


def script(prompt: list[int], output: list[int]) -> list[int]:
    """Every favourite, the best first."""
    state = zlib.crc32(repr(prompt + output).encode())
    return sorted(range(FAVOURITES), key=lambda token: (token * 7919 + state) % 10007, reverse=True)


def scripted_tokens(prompt: list[int], count: int, forbid: int | None, repeat_limit: int | None) -> list[int]:
    """What a request generates, by the definitions of the processors, one request at a time."""
    output: list[int] = []
    for _ in range(count):
        free = (t for t in script(prompt, output) if t != forbid)
        output.append(next(t for t in free if repeat_limit is None or output.count(t) < repeat_limit))
    return output


class Scripted(AdapterLogitsProcessor):
    """The logits of :func:`script`: the best favourite has the largest."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams):
        return replace


def replace(prompt: list[int], output: list[int], logits: torch.Tensor) -> torch.Tensor:
    made = torch.full_like(logits, -10.0)
    made[script(prompt, output)] = torch.arange(FAVOURITES, 0, -1, dtype=logits.dtype)
    return made
