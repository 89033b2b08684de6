"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response

from vllm_ext.contracts.outputs import CompletionOutput, RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.server import logprobs, prompts
from vllm_ext.server.answers import encode, event
from vllm_ext.server.generation import Head, UsageCounter, UsageOptions, generate, sampling_params
from vllm_ext.server.protocol import CompletionChoice, CompletionLogprobs, CompletionRequest, TextAnswer
from vllm_ext.server.service import Service, new_id, now


async def create_completion(service: Service, request: CompletionRequest) -> Response:
    """Texts that go on from prompts: all at once, or as events while they come."""
    service.check_generates(wanted=True)
    call = _Call(service, request)
    if request.stream:
        return service.events(CompletionRequest, call.events())
    return service.json(CompletionRequest, call.body)


class _Call:
    """One request, with what it needs from output to output."""

    def __init__(self, service: Service, request: CompletionRequest) -> None:
        self._service = service
        self._request = request
        self._prompts = prompts.split("prompt", request.prompt)
        self._is_echo = request.echo is True
        self._is_echo_alone = self._is_echo and request.max_tokens == 0
        self._params = self._sampling_params()
        self._usage_options = UsageOptions.of(request)
        self._usage = UsageCounter()
        self._head = Head(new_id("cmpl", request), "text_completion", now(), service.model_name)
        self._prompt_logprobs: dict[int, Any] = {}
        """By prompt."""
        self._echoed: dict[int, str] = {}
        """Texts of prompts that an answer begins with."""
        self._num_characters: dict[int, int] = {}
        """By choice: characters of the tokens so far, from which on the next token's are counted."""

    def _sampling_params(self) -> SamplingParams:
        request = self._request
        of_prompt = request.logprobs if self._is_echo and request.prompt_logprobs is None else None
        # The engine makes one token at least, which nobody gets then.
        max_tokens = 1 if self._is_echo_alone else None
        given = {"logprobs": request.logprobs, "prompt_logprobs": of_prompt, "max_tokens": max_tokens}
        return sampling_params(self._service, request, **{k: v for k, v in given.items() if v is not None})

    async def body(self) -> bytes:
        """The whole answer."""
        choices: dict[int, CompletionChoice] = {}
        async with aclosing(self._outputs()) as outputs:
            async for prompt_index, output in outputs:
                for choice in await self._choices(prompt_index, output):
                    choices[choice.index] = choice
        return encode(TextAnswer(*self._head, [choices[index] for index in sorted(choices)], self._usage.usage))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Events with what is new, for each completion of a prompt one."""
        options = self._usage_options
        async with aclosing(self._outputs()) as outputs:
            async for prompt_index, output in outputs:
                choices = await self._choices(prompt_index, output)
                usage = options.in_event(self._usage.usage)
                yield b"".join([event(encode(TextAnswer(*self._head, [choice], usage))) for choice in choices])
        if options.at_end:
            yield event(encode(TextAnswer(*self._head, [], self._usage.usage)))

    async def _outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        request = self._request
        each = self._prompts
        if request.add_special_tokens is False:
            each = await prompts.without_special_tokens(self._service, each)
        run = generate(self._service, each, self._params, self._head.id, request.priority)
        async with aclosing(run) as outputs:
            async for prompt_index, output in outputs:
                self._usage.add(prompt_index, output, counts_completion=not self._is_echo_alone)
                # They come once, and each completion of the prompt begins with them.
                self._prompt_logprobs.setdefault(prompt_index, output.prompt_logprobs)
                yield prompt_index, output

    async def _choices(self, prompt_index: int, output: RequestOutput) -> list[CompletionChoice]:
        if self._is_echo and prompt_index not in self._echoed:
            text = output.prompt
            self._echoed[prompt_index] = await self._service.decode(output.prompt_token_ids) if text is None else text
        echoed = self._echoed.get(prompt_index, "")
        return [self._choice(prompt_index, output, completion, echoed) for completion in output.outputs]

    def _choice(
        self, prompt_index: int, output: RequestOutput, completion: CompletionOutput, echoed: str
    ) -> CompletionChoice:
        request = self._request
        index = prompt_index * self._params.n + completion.index
        is_first = index not in self._num_characters
        text = "" if self._is_echo_alone else completion.text
        choice = CompletionChoice(
            index=index,
            text=echoed + text if is_first else text,
            logprobs=self._logprobs(index, prompt_index, output, completion),
            finish_reason="length" if self._is_echo_alone else completion.finish_reason,
            stop_reason=None if self._is_echo_alone else completion.stop_reason,
        )
        if is_first and request.prompt_logprobs is not None:
            choice.prompt_logprobs = logprobs.of_prompt(self._prompt_logprobs[prompt_index])
        if request.return_token_ids:
            choice.token_ids = [] if self._is_echo_alone else completion.token_ids
            if is_first:
                choice.prompt_token_ids = output.prompt_token_ids
        self._num_characters.setdefault(index, 0)
        return choice

    def _logprobs(
        self, index: int, prompt_index: int, output: RequestOutput, completion: CompletionOutput
    ) -> CompletionLogprobs | None:
        num_top = self._request.logprobs
        if num_top is None:
            return None
        positions: list[Any] = [] if self._is_echo_alone else [*(completion.logprobs or ())]
        token_ids = [] if self._is_echo_alone else [*completion.token_ids]
        begin = self._num_characters.get(index)
        if begin is None and self._is_echo:
            positions = [*(self._prompt_logprobs[prompt_index] or ()), *positions]
            token_ids = [*output.prompt_token_ids, *token_ids]
        lists = logprobs.of_completion(
            positions,
            token_ids,
            as_ids=self._request.return_tokens_as_token_ids is True,
            num_top=num_top,
            begin=begin or 0,
            decode=self._service.engine.get_tokenizer().decode,
        )
        if lists.tokens:
            self._num_characters[index] = lists.text_offset[-1] + len(lists.tokens[-1])
        return lists
