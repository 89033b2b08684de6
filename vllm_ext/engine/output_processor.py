"""From the tokens of a step to what the user gets: text, token ids, and why a request ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer

from vllm_ext.contracts.outputs import CompletionOutput, FinishReason, RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.detokenizer import IncrementalDetokenizer, TokenBytes
from vllm_ext.engine.request import EngineCoreOutput
from vllm_ext.engine.stop_strings import StopStringFilter


class ProcessedOutputs(NamedTuple):
    """``stopped`` are requests that a stop string ended, which the engine core does not know yet."""

    request_outputs: list[RequestOutput]
    stopped: list[str]


class _RequestState:
    """The output of one request so far. Its text is brought up to date only when it is needed."""

    __slots__ = (
        "detokenizer",
        "final_only",
        "num_cached_tokens",
        "num_detokenized",
        "prompt",
        "prompt_token_ids",
        "request_id",
        "stop_filter",
        "text",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        detokenizer: IncrementalDetokenizer,
        stop_filter: StopStringFilter | None,
        final_only: bool,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.detokenizer = detokenizer
        self.stop_filter = stop_filter
        self.final_only = final_only
        self.token_ids: list[int] = []
        self.text = ""
        self.num_detokenized = 0
        self.num_cached_tokens = 0

    def detokenize(self, end: int) -> str | None:
        """Bring the text up to the first ``end`` tokens; returns the stop string if one is complete."""
        delta = self.detokenizer.decode(self.token_ids[self.num_detokenized : end])
        self.num_detokenized = end
        return self._add(delta)

    def flush(self) -> str | None:
        """Add what was held back, since no more tokens come; returns the stop string if one is complete now."""
        matched = self._add(self.detokenizer.flush())
        if self.stop_filter and not matched:
            self.text += self.stop_filter.flush()
        return matched

    def output(self, finish_reason: FinishReason | None, stop_reason: int | str | None) -> RequestOutput:
        completion = CompletionOutput(0, self.text, self.token_ids.copy(), finish_reason, stop_reason)
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_token_ids,
            [completion],
            finished=finish_reason is not None,
            num_cached_tokens=self.num_cached_tokens,
        )

    def _add(self, delta: str) -> str | None:
        if self.stop_filter is None:
            self.text += delta
            return None
        self.text += self.stop_filter.feed(delta)
        return self.stop_filter.matched


class OutputProcessor:
    """Keeps the state of each request's output, from its start to its last token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = TokenBytes(tokenizer)
        self._states: dict[str, _RequestState] = {}

    def add_request(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        final_only: bool = False,
    ) -> None:
        """Expect tokens of a request; ``final_only`` asks for one output, at its end."""
        at_start = not any(self._token_bytes[token_id] for token_id in prompt_token_ids)
        self._states[request_id] = _RequestState(
            request_id,
            prompt,
            prompt_token_ids,
            IncrementalDetokenizer(self._token_bytes, at_start=at_start),
            StopStringFilter(params.stop) if params.stop else None,
            final_only,
        )

    def process_outputs(self, outputs: Iterable[EngineCoreOutput]) -> ProcessedOutputs:
        """Add one step's tokens; outputs of finished requests are the last ones."""
        processed = ProcessedOutputs([], [])
        for output in outputs:
            state = self._states.get(output.request_id)
            if state is None:
                # It ended here, by a stop string or an abort, while the core was still making this token.
                continue
            state.num_cached_tokens = output.num_cached_tokens
            state.token_ids += output.new_token_ids
            if state.final_only and state.stop_filter is None and output.finish_reason is None:
                continue
            finish_reason, stop_reason = self._update_text(state, output)
            if finish_reason is not None:
                del self._states[output.request_id]
                if output.finish_reason is None:
                    processed.stopped.append(output.request_id)
            elif state.final_only:
                continue
            processed.request_outputs.append(state.output(finish_reason, stop_reason))
        return processed

    def abort_requests(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests from outside; returns their last outputs. Unknown ids are passed over."""
        states = [self._states.pop(request_id) for request_id in request_ids if request_id in self._states]
        for state in states:
            state.detokenize(len(state.token_ids))
            state.flush()
        return [state.output("abort", None) for state in states]

    def clear(self) -> None:
        """Forget all requests."""
        self._states.clear()

    @staticmethod
    def _update_text(state: _RequestState, output: EngineCoreOutput) -> tuple[FinishReason | None, int | str | None]:
        """Detokenize what is new; why the request ended, if it did: a stop string wins over every other reason."""
        # A token that stops generation is no part of the text.
        end = len(state.token_ids) - (output.finish_reason == "stop")
        matched = state.detokenize(end)
        if matched is None and output.finish_reason is not None:
            matched = state.flush()
        if matched is not None:
            return "stop", matched
        return output.finish_reason, output.stop_reason
