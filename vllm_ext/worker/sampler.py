"""From logits to tokens, for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_ext.contracts.sampling_params import SamplingParams

_WORD = 2**64


class Sampler:
    """Takes the most likely token where the temperature is 0, and draws one otherwise.

    Args:
        seed: of the random numbers of requests without a seed of their own.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._seeded = torch.Generator()

    def sample(
        self, logits: torch.Tensor, params: Sequence[SamplingParams], output_lens: Sequence[int]
    ) -> torch.Tensor:
        """Choose a token per row.

        Args:
            logits: ``[rows, vocabulary]``.
            params: by row.
            output_lens: tokens generated before this one, by row. A request with a seed draws by seed and count, so
                its tokens do not depend on its neighbours, nor on having been interrupted.

        Returns: int64 ``[rows]``, on the logits' device.
        """
        greedy = _most_likely(logits)
        rows = [i for i, p in enumerate(params) if not p.is_greedy]
        if not rows:
            return greedy
        index = torch.tensor(rows, device=logits.device)
        temperature = torch.tensor([params[i].temperature for i in rows], device=logits.device).unsqueeze(1)
        uniform = self._uniform([params[i].seed for i in rows], [output_lens[i] for i in rows]).to(logits.device)
        drawn = _draw(logits.index_select(0, index).float() / temperature, uniform)
        # NaN and infinite logits are no probabilities: then the most likely token, which does exist.
        greedy[index] = torch.where(drawn < logits.shape[1], drawn, greedy[index])
        return greedy

    def _uniform(self, seeds: list[int | None], counts: list[int]) -> torch.Tensor:
        """A number from [0, 1) per row, in host memory."""
        numbers = torch.rand(len(seeds), dtype=torch.float64, generator=self._generator)
        for row, (seed, count) in enumerate(zip(seeds, counts, strict=True)):
            if seed is not None:
                self._seeded.manual_seed(_mix(seed, count))
                numbers[row] = torch.rand((), dtype=torch.float64, generator=self._seeded)
        return numbers


def _most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The first index of each row's largest value."""
    if logits.is_cpu:
        # In host memory numpy is ten times as fast.
        return torch.from_numpy(logits.float().numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def _draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the running sum of the probabilities passes ``uniform``, for each row."""
    total = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # Below the last sum even after rounding, so that a token of probability 0 at the end is never taken.
    last = total[:, -1:]
    target = torch.minimum(uniform.unsqueeze(1) * last, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(total, target, right=True).squeeze(1)


def _mix(seed: int, count: int) -> int:
    """A 64-bit number that differs wildly for close arguments (the finaliser of splitmix64)."""
    word = (seed + (count + 1) * 0x9E3779B97F4A7C15) % _WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % _WORD
    return word ^ (word >> 31)
