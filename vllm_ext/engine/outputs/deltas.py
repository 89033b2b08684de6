"""From states of a request to what each adds to the one before, for ``RequestOutputKind.DELTA``."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from vllm_ext.contracts.outputs import CompletionOutput, FinishReason, RequestOutput


class _Told(NamedTuple):
    num_characters: int
    num_tokens: int
    finish_reason: FinishReason | None


_NOTHING = _Told(0, 0, None)


class Deltas:
    """What the reader of one request knows already."""

    def __init__(self) -> None:
        self._told: dict[int, _Told] = {}
        """By the index of a completion."""
        self._has_prompt_logprobs = False

    def added_by(self, state: RequestOutput) -> RequestOutput:
        """A copy of ``state`` with the completions that went on or ended since the one before, each with its new text,
        tokens and log probabilities alone; the sum of these is of all so far. Those of the prompt come once.
        """
        completions = [added for completion in state.outputs if (added := self._added_to(completion)) is not None]
        prompt_logprobs = None if self._has_prompt_logprobs else state.prompt_logprobs
        self._has_prompt_logprobs = state.prompt_logprobs is not None
        return replace(state, outputs=completions, prompt_logprobs=prompt_logprobs)

    def _added_to(self, completion: CompletionOutput) -> CompletionOutput | None:
        before = self._told.get(completion.index, _NOTHING)
        now = _Told(len(completion.text), len(completion.token_ids), completion.finish_reason)
        if now == before:
            return None
        self._told[completion.index] = now
        logprobs = completion.logprobs
        return replace(
            completion,
            text=completion.text[before.num_characters :],
            token_ids=completion.token_ids[before.num_tokens :],
            logprobs=None if logprobs is None else logprobs[before.num_tokens :],
        )
