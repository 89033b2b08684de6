"""``n`` completions of one prompt: a request for each, whose outputs come back as one."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from vllm_ext.contracts.outputs import CompletionOutput, PromptLogprobs, RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core.messages import EngineCoreRequest


class ParentRequest:
    """A request with ``n`` above 1, and the latest state of each of its completions."""

    def __init__(
        self, request_id: str, prompt: str | None, prompt_token_ids: list[int], params: SamplingParams
    ) -> None:
        self.request_id = request_id
        self._prompt = prompt
        self._prompt_token_ids = prompt_token_ids
        self._params = params
        self._prompt_logprobs: PromptLogprobs | None = None
        self._num_cached_tokens = 0
        self._completions = [_nothing_yet(index, params) for index in range(params.n)]

    @property
    def child_ids(self) -> list[str]:
        """Request ids of the completions, spelt as vLLM spells them."""
        return [f"{index}_{self.request_id}" for index in range(self._params.n)]

    @property
    def finished(self) -> bool:
        return all(completion.finished for completion in self._completions)

    def children(self) -> Iterator[tuple[str, SamplingParams]]:
        """Request id and parameters of each completion: its seed is the seed and its index together."""
        for index, child_id in enumerate(self.child_ids):
            seed = self._params.seed
            yield (
                child_id,
                msgspec.structs.replace(
                    self._params,
                    n=1,
                    # -1 would be none, and there are 2**64 seeds.
                    seed=None if seed is None else (seed + index) % 2**64,
                    # The prompt is the same for all of them.
                    prompt_logprobs=self._params.prompt_logprobs if index == 0 else None,
                ),
            )

    def update(
        self, completion: CompletionOutput, prompt_logprobs: PromptLogprobs | None, num_cached_tokens: int
    ) -> None:
        """Note a completion's new state; what is said of the prompt is what the first completion found."""
        self._completions[completion.index] = completion
        if completion.index == 0:
            self._prompt_logprobs = prompt_logprobs
            self._num_cached_tokens = num_cached_tokens

    def output(self) -> RequestOutput:
        """All completions as they are now."""
        return RequestOutput(
            self.request_id,
            self._prompt,
            self._prompt_token_ids,
            self._prompt_logprobs,
            list(self._completions),
            finished=self.finished,
            num_cached_tokens=self._num_cached_tokens,
        )


def split_completions(
    prompt: str | None, request: EngineCoreRequest
) -> tuple[ParentRequest | None, list[EngineCoreRequest]]:
    """What the engine core gets for a request: itself, or one for each of ``n`` completions, with their parent."""
    params = request.sampling_params
    if params is None or params.n == 1:
        return None, [request]
    parent = ParentRequest(request.request_id, prompt, request.prompt_token_ids, params)
    children = [
        msgspec.structs.replace(request, request_id=child_id, sampling_params=params)
        for child_id, params in parent.children()
    ]
    return parent, children


def _nothing_yet(index: int, params: SamplingParams) -> CompletionOutput:
    if params.logprobs is None:
        return CompletionOutput(index, "", [])
    return CompletionOutput(index, "", [], 0.0, [])
