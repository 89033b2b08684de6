"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from msgspec import UNSET
from starlette.responses import Response

from vllm_ext.contracts.outputs import CompletionOutput, RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.errors import RefusedByServer
from vllm_ext.server import logprobs
from vllm_ext.server.answers import encode, event
from vllm_ext.server.generation import Head, UsageCounter, UsageOptions, generate, sampling_params
from vllm_ext.server.protocol import ChatChoice, ChatLogprobs, ChatRequest, Delta, Message, TextAnswer
from vllm_ext.server.service import Service, new_id, now


async def create_chat_completion(service: Service, request: ChatRequest) -> Response:
    """The model's next message: at once, or as events while it comes."""
    service.check_generates(wanted=True)
    call = _Call(service, request)
    if request.stream:
        return service.events(ChatRequest, call.events())
    return service.json(ChatRequest, call.body)


class _Call:
    """One request, with what it needs from output to output."""

    def __init__(self, service: Service, request: ChatRequest) -> None:
        self._service = service
        self._request = request
        self._num_top = _num_top(request)
        self._params = self._sampling_params()
        self._usage_options = UsageOptions.of(request)
        self._usage = UsageCounter()
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        self._head = Head(new_id("chatcmpl", request), kind, now(), service.model_name)

    def _sampling_params(self) -> SamplingParams:
        request = self._request
        if request.max_completion_tokens is not None:
            max_tokens: int | None = request.max_completion_tokens
        else:
            max_tokens = request.max_tokens
        params = sampling_params(self._service, request, logprobs=self._num_top, max_tokens=max_tokens)
        if max_tokens is None:
            # A message is as long as the model makes it, unless its directory says otherwise.
            params.max_tokens = self._service.models_max_tokens
        return params

    async def body(self) -> bytes:
        """The whole answer."""
        answer = TextAnswer(*self._head, [])
        async with aclosing(self._outputs()) as outputs:
            async for output in outputs:
                answer.choices = [self._choice(completion) for completion in output.outputs]
                if self._request.prompt_logprobs is not None:
                    answer.prompt_logprobs = logprobs.of_prompt(output.prompt_logprobs)
                if self._request.return_token_ids:
                    answer.prompt_token_ids = output.prompt_token_ids
        answer.usage = self._usage.usage
        return encode(answer)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Events: for each completion who speaks, then what is new; with the prompt's own in the first."""
        options = self._usage_options
        begun: set[int] = set()
        async with aclosing(self._outputs()) as outputs:
            async for output in outputs:
                usage = options.in_event(self._usage.usage)
                events = b""
                for completion in output.outputs:
                    if completion.index not in begun:
                        first = TextAnswer(*self._head, [self._first(completion)], usage)
                        if not begun:
                            self._add_prompt(first, output)
                        begun.add(completion.index)
                        events += event(encode(first))
                    events += event(encode(TextAnswer(*self._head, [self._choice(completion)], usage)))
                yield events
        if options.at_end:
            yield event(encode(TextAnswer(*self._head, [], self._usage.usage)))

    async def _outputs(self) -> AsyncGenerator[RequestOutput, None]:
        request = self._request
        prompt = await self._service.chat_prompt(request)
        run = generate(self._service, [prompt], self._params, self._head.id, request.priority)
        async with aclosing(run) as outputs:
            async for _, output in outputs:
                self._usage.add(0, output)
                yield output

    def _add_prompt(self, first: TextAnswer, output: RequestOutput) -> None:
        if self._request.prompt_logprobs is not None:
            first.prompt_logprobs = logprobs.of_prompt(output.prompt_logprobs)
        if self._request.return_token_ids:
            first.prompt_token_ids = output.prompt_token_ids

    def _first(self, completion: CompletionOutput) -> ChatChoice:
        return ChatChoice(completion.index, UNSET, Delta("assistant", ""), None, None, None)

    def _choice(self, completion: CompletionOutput) -> ChatChoice:
        """What ``completion`` has, as a message or as a part of one."""
        text = completion.text
        is_part = bool(self._request.stream)
        choice = ChatChoice(
            index=completion.index,
            message=UNSET if is_part else Message("assistant", text),
            delta=Delta(content=text) if is_part else UNSET,
            logprobs=self._logprobs(completion),
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
        )
        if self._request.return_token_ids:
            choice.token_ids = completion.token_ids
        return choice

    def _logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if self._num_top is None:
            return None
        as_ids = self._request.return_tokens_as_token_ids is True
        positions: Any = completion.logprobs or ()
        return logprobs.of_chat(positions, completion.token_ids, as_ids=as_ids, num_top=self._num_top)


def _num_top(request: ChatRequest) -> int | None:
    """How many of the likeliest tokens are told besides each token; ``None`` for no log probabilities."""
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise RefusedByServer(
            f"top_logprobs is {request.top_logprobs}, and logprobs is not true; set it", param="top_logprobs"
        )
    return None
