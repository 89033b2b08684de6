"""From the tokens of a step to what the user gets: text, token ids, log probabilities, and why a request ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_ext.contracts.outputs import CompletionOutput, FinishReason, RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.tokenizer import TokenizerLike
from vllm_ext.engine.core.messages import EngineCoreRequest
from vllm_ext.engine.outputs.detokenizer import IncrementalDetokenizer, TokenBytes
from vllm_ext.engine.outputs.logprobs import LogprobsProcessor
from vllm_ext.engine.outputs.parallel_sampling import ParentRequest
from vllm_ext.engine.outputs.stop_strings import StopStringFilter
from vllm_ext.engine.scheduling.request import EngineCoreOutput
from vllm_ext.errors import EngineError


class ProcessedOutputs(NamedTuple):
    """``stopped`` are requests that a stop string ended, which the engine core does not know yet."""

    request_outputs: list[RequestOutput]
    stopped: list[str]


class _Text:
    """The text of one request so far. It is brought up to date only when it is needed."""

    __slots__ = ("_detokenizer", "_min_tokens", "_num_detokenized", "_stop_filter", "text")

    def __init__(self, detokenizer: IncrementalDetokenizer, params: SamplingParams) -> None:
        self._detokenizer = detokenizer
        self._stop_filter = (
            StopStringFilter(params.stop, include=params.include_stop_str_in_output) if params.stop else None
        )
        self._min_tokens = params.min_tokens if params.stop else 0
        self._num_detokenized = 0
        self.text = ""

    @property
    def can_stop(self) -> bool:
        """Whether it has to be looked at after every step."""
        return self._stop_filter is not None

    def detokenize(self, token_ids: list[int], end: int) -> str | None:
        """Bring the text up to the first ``end`` of all tokens; returns the stop string if one is complete."""
        start = self._num_detokenized
        if start < self._min_tokens < end:
            # Stop strings count from the token after min_tokens on.
            self.detokenize(token_ids, self._min_tokens)
            start = self._min_tokens
        self._num_detokenized = end
        return self._add(self._detokenizer.decode(token_ids[start:end]))

    def flush(self) -> str | None:
        """Add what was held back, since no more tokens come; returns the stop string if one is complete now."""
        matched = self._add(self._detokenizer.flush())
        if self._stop_filter and not matched:
            self.text += self._stop_filter.flush()
        return matched

    def _add(self, delta: str) -> str | None:
        if self._stop_filter is None:
            self.text += delta
            return None
        self.text += self._stop_filter.feed(delta, may_stop=self._num_detokenized > self._min_tokens)
        return self._stop_filter.matched


@dataclass(slots=True, eq=False)
class _RequestState:
    """The output of one request, which may be one of several completions, so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    text: _Text | None
    logprobs: LogprobsProcessor | None
    keeps_stop_token: bool
    final_only: bool
    parent: ParentRequest | None
    index: int
    token_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    is_quiet: bool = field(init=False)
    """Whether there is nothing to do but to collect tokens until the request ends."""

    def __post_init__(self) -> None:
        self.is_quiet = self.final_only and not (self.text is not None and self.text.can_stop)

    def update_text(self, output: EngineCoreOutput) -> tuple[FinishReason | None, int | str | None]:
        """Detokenize what is new; why the request ended, if it did: a stop string wins over every other reason."""
        if self.text is not None:
            # A token that stops generation is no part of the text.
            end = len(self.token_ids) - (output.finish_reason == "stop" and not self.keeps_stop_token)
            matched = self.text.detokenize(self.token_ids, end)
            if matched is None and output.finish_reason is not None:
                matched = self.text.flush()
            if matched is not None:
                return "stop", matched
        return output.finish_reason, output.stop_reason

    def completion(self, finish_reason: FinishReason | None, stop_reason: int | str | None) -> CompletionOutput:
        text = "" if self.text is None else self.text.text
        completion = CompletionOutput(self.index, text, self.token_ids.copy())
        completion.finish_reason, completion.stop_reason = finish_reason, stop_reason
        if self.logprobs is not None and self.logprobs.logprobs is not None:
            completion.logprobs = self.logprobs.logprobs.copy()
            completion.cumulative_logprob = self.logprobs.cumulative_logprob
        return completion

    def output(self, completion: CompletionOutput) -> RequestOutput | None:
        """What the user gets now; ``None`` where the parent will give it, once for all completions."""
        prompt_logprobs = self.logprobs.prompt_logprobs if self.logprobs is not None else None
        if self.parent is not None:
            self.parent.update(completion, prompt_logprobs, self.num_cached_tokens)
            return None
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_token_ids,
            prompt_logprobs,
            [completion],
            finished=completion.finished,
            num_cached_tokens=self.num_cached_tokens,
        )


class OutputProcessor:
    """Keeps the state of each request's output, from its start to its last token."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._token_bytes = {skip: TokenBytes(tokenizer, skip_special_tokens=skip) for skip in (True, False)}
        self._states: dict[str, _RequestState] = {}
        self._parents: dict[str, ParentRequest] = {}

    def add_completions(
        self,
        prompt: str | None,
        requests: Sequence[EngineCoreRequest],
        parent: ParentRequest | None,
        *,
        final_only: bool = False,
    ) -> None:
        """Expect tokens of the requests that :func:`split_completions` made of one: where they have a ``parent``, the
        outputs are its. ``final_only`` asks for one output, at the end.
        """
        if parent is not None:
            self._parents[parent.request_id] = parent
        for index, request in enumerate(requests):
            if (params := request.sampling_params) is None:
                raise EngineError(f"request {request.request_id!r} is for pooling, and this engine generates")
            self._states[request.request_id] = _RequestState(
                request.request_id,
                prompt,
                request.prompt_token_ids,
                self._make_text(request.prompt_token_ids, params),
                self._make_logprobs(params),
                keeps_stop_token=params.include_stop_str_in_output,
                final_only=final_only,
                parent=parent,
                index=index,
            )

    def child_ids(self, request_id: str) -> list[str]:
        """Ids that the engine core knows the request by; of several completions, those that have not ended."""
        parent = self._parents.get(request_id)
        if parent is None:
            return [request_id]
        # The id of one that has may be another request's by now.
        states = ((child, self._states.get(child)) for child in parent.child_ids)
        return [child for child, state in states if state is not None and state.parent is parent]

    def parent_ids(self, child_ids: Iterable[str]) -> list[str]:
        """The other way round: ids, each once, of the requests in flight that the core knows by ``child_ids``."""
        states = [state for child_id in child_ids if (state := self._states.get(child_id)) is not None]
        return list(dict.fromkeys(state.parent.request_id if state.parent else state.request_id for state in states))

    def request_ids(self) -> list[str]:
        """Of all requests in flight."""
        return self.parent_ids(self._states)

    def is_in_flight(self, request_id: str) -> bool:
        return request_id in self._states or request_id in self._parents

    def process_outputs(self, outputs: Iterable[EngineCoreOutput]) -> ProcessedOutputs:
        """Add one step's tokens; outputs of finished requests are the last ones."""
        processed = ProcessedOutputs([], [])
        parents: dict[str, ParentRequest] = {}
        for output in outputs:
            state = self._states.get(output.request_id)
            if state is None:
                # It ended here, by a stop string or an abort, while the core was still making this token.
                continue
            state.token_ids += output.new_token_ids
            state.num_cached_tokens = output.num_cached_tokens
            if state.logprobs is not None:
                state.logprobs.add(output.new_logprobs, len(output.new_token_ids), output.new_prompt_logprobs)
            if state.is_quiet and output.finish_reason is None:
                continue
            finish_reason, stop_reason = state.update_text(output)
            if finish_reason is not None:
                del self._states[output.request_id]
                if output.finish_reason is None:
                    processed.stopped.append(output.request_id)
            elif state.final_only:
                continue
            request_output = state.output(state.completion(finish_reason, stop_reason))
            if request_output is not None:
                processed.request_outputs.append(request_output)
            elif state.parent is not None and (state.parent.finished or not state.final_only):
                parents[state.parent.request_id] = state.parent
        if parents:
            processed.request_outputs.extend(self._outputs_of(parents.values()))
        return processed

    def abort_requests(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests from outside; returns their last outputs. Unknown ids are passed over."""
        outputs: list[RequestOutput] = []
        parents: dict[str, ParentRequest] = {}
        for request_id in request_ids:
            for child_id in self.child_ids(request_id):
                if (state := self._states.pop(child_id, None)) is None:
                    continue
                if state.text is not None:
                    state.text.detokenize(state.token_ids, len(state.token_ids))
                    state.text.flush()
                output = state.output(state.completion("abort", None))
                if output is not None:
                    outputs.append(output)
                elif state.parent is not None:
                    parents[state.parent.request_id] = state.parent
        return outputs + self._outputs_of(parents.values())

    def aborted_output(self, request_id: str) -> RequestOutput:
        """The last output of a request that was aborted before anything was known about it."""
        aborted = CompletionOutput(0, "", [], finish_reason="abort")
        return RequestOutput(request_id, None, [], outputs=[aborted], finished=True)

    def clear(self) -> None:
        """Forget all requests."""
        self._states.clear()
        self._parents.clear()

    def _make_text(self, prompt_token_ids: list[int], params: SamplingParams) -> _Text | None:
        if not params.detokenize:
            return None
        token_bytes = self._token_bytes[params.skip_special_tokens]
        return _Text(IncrementalDetokenizer(token_bytes, prompt_token_ids), params)

    def _make_logprobs(self, params: SamplingParams) -> LogprobsProcessor | None:
        wants_samples, wants_prompt = params.logprobs is not None, params.prompt_logprobs is not None
        if not wants_samples and not wants_prompt:
            return None
        decode = self._token_bytes[False].text if params.detokenize else None
        return LogprobsProcessor(wants_samples=wants_samples, wants_prompt=wants_prompt, decode=decode)

    def _outputs_of(self, parents: Iterable[ParentRequest]) -> list[RequestOutput]:
        for parent in parents:
            if parent.finished:
                del self._parents[parent.request_id]
        return [parent.output() for parent in parents]
