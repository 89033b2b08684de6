"""The log probabilities of one request, in the shape that its user gets."""

from __future__ import annotations

from collections.abc import Callable

from vllm_ext.contracts.outputs import Logprob, LogprobsOnePosition, PromptLogprobs, SampleLogprobs
from vllm_ext.engine.scheduling.request import TokenLogprobs

Decode = Callable[[int], str]
"""A token id to its text."""


class LogprobsProcessor:
    """Collects what the steps bring.

    Args:
        wants_samples, wants_prompt: whether they are asked for.
        decode: ``None`` where there is to be no text.
    """

    def __init__(self, *, wants_samples: bool, wants_prompt: bool, decode: Decode | None) -> None:
        self._decode = decode
        self.logprobs: SampleLogprobs | None = [] if wants_samples else None
        self.cumulative_logprob: float | None = 0.0 if wants_samples else None
        self.prompt_logprobs: PromptLogprobs | None = [None] if wants_prompt else None

    def add(self, samples: TokenLogprobs | None, num_tokens: int, prompt: TokenLogprobs | None) -> None:
        """Take in those of ``num_tokens`` new tokens, and those of the prompt."""
        if samples is not None and self.logprobs is not None:
            self.logprobs += _positions(samples, num_tokens, self._decode)
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + sum(
                row[0] for row in samples.logprobs[:num_tokens]
            )
        if prompt is not None and self.prompt_logprobs is not None:
            self.prompt_logprobs += _positions(prompt, len(prompt.logprobs), self._decode)


def _positions(tokens: TokenLogprobs, count: int, decode: Decode | None) -> list[LogprobsOnePosition]:
    rows = zip(tokens.token_ids[:count], tokens.logprobs[:count], tokens.ranks[:count], strict=True)
    return [_one_position(*row, decode) for row in rows]


def _one_position(token_ids: list[int], logprobs: list[float], rank: int, decode: Decode | None) -> LogprobsOnePosition:
    """The token that stands there, then the likeliest ones, of which it may be one."""
    position = {token_ids[0]: Logprob(logprobs[0], rank, decode(token_ids[0]) if decode else None)}
    for place, (token_id, logprob) in enumerate(zip(token_ids[1:], logprobs[1:], strict=True), 1):
        if token_id not in position:
            position[token_id] = Logprob(logprob, place, decode(token_id) if decode else None)
    return position
