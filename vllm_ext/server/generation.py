"""What completions and chat share: the outputs of one request's prompts as they come, and what is counted of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

from msgspec import UNSET, UnsetType

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.sampling_params import RequestOutputKind, SamplingParams
from vllm_ext.errors import RefusedByServer
from vllm_ext.server.protocol import GenerationRequest, PromptTokensDetails, Usage
from vllm_ext.server.service import Service

T = TypeVar("T")

_SAMPLING_FIELDS = [name for name in GenerationRequest.__struct_fields__ if name in SamplingParams.__struct_fields__]
"""Those of a request that go into :class:`SamplingParams` as they are."""


class Head(NamedTuple):
    """What all parts of an answer repeat."""

    id: str
    object: str
    created: int
    model: str


class UsageCounter:
    """Counts the tokens of a request while its outputs come."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._num_completion_tokens = 0

    def add(self, prompt_index: int, output: RequestOutput, *, counts_completion: bool = True) -> None:
        """Count an output, whose completions have what is new."""
        self._prompts[prompt_index] = len(output.prompt_token_ids), output.num_cached_tokens
        if counts_completion:
            self._num_completion_tokens += sum(len(completion.token_ids) for completion in output.outputs)

    @property
    def usage(self) -> Usage:
        num_prompt_tokens = sum(number for number, _ in self._prompts.values())
        num_cached = sum(number for _, number in self._prompts.values())
        total = num_prompt_tokens + self._num_completion_tokens
        return Usage(num_prompt_tokens, total, self._num_completion_tokens, PromptTokensDetails(num_cached))


class UsageOptions(NamedTuple):
    """Which events of a stream have the usage."""

    at_end: bool
    always: bool

    @classmethod
    def of(cls, request: GenerationRequest) -> UsageOptions:
        """RefusedByServer for options of a stream where there is none."""
        options = request.stream_options
        if options is None:
            return cls(False, False)
        if not request.stream:
            raise RefusedByServer("stream_options is given, and stream is not true", param="stream_options")
        at_end = options.include_usage is True
        return cls(at_end, at_end and options.continuous_usage_stats is True)

    def in_event(self, usage: Usage) -> Usage | UnsetType | None:
        """What an event with text has for the usage so far: null where the last event alone has it."""
        if self.always:
            return usage
        return None if self.at_end else UNSET


def sampling_params(service: Service, request: GenerationRequest, **given: Any) -> SamplingParams:
    """The parameters of a request; ``given`` wins over its fields, where it is not ``None``.

    Raises:
        InvalidRequest: a value is out of range.
    """
    fields = {name: getattr(request, name) for name in _SAMPLING_FIELDS}
    params = service.sampling_params(fields | given | {"extra_args": request.vllm_xargs})
    params.output_kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    return params


def generate(
    service: Service, prompts: Sequence[Any], params: SamplingParams, request_id: str, priority: int
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """The outputs of all prompts as they come, with the index of each one's prompt; see :func:`outputs_of`."""
    return outputs_of(
        [
            service.engine.generate(prompt, params, f"{request_id}-{index}", priority=priority)
            for index, prompt in enumerate(prompts)
        ]
    )


async def outputs_of(runs: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What all of ``runs``, which are requests of the engine, give as it comes, each with the run's index. Ending it
    ends the requests.

    Raises: what the first of them does that fails; the others are over then, too.
    """
    if len(runs) == 1:
        async with aclosing(runs[0]) as run:
            async for output in run:
                yield 0, output
        return
    # No larger: what is not taken from an engine's request is one output in the end, however long it lies there.
    queue: asyncio.Queue[tuple[int, T | Exception | None]] = asyncio.Queue(maxsize=1)
    readers = [asyncio.ensure_future(_read(index, run, queue)) for index, run in enumerate(runs)]
    try:
        num_ended = 0
        while num_ended < len(runs):
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_ended += 1
            else:
                yield index, item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(
    index: int,
    run: AsyncGenerator[T, None],
    queue: asyncio.Queue[tuple[int, T | Exception | None]],
) -> None:
    end: Exception | None = None
    try:
        async with aclosing(run):
            async for output in run:
                await queue.put((index, output))
    except Exception as error:  # noqa: BLE001 - who reads the queue raises it
        end = error
    await queue.put((index, end))
