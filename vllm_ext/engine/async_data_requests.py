"""Requests with data in an event loop, which the IO processor's code does not block."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import msgspec

from vllm_ext.contracts.io_processor import IOProcessor
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput
from vllm_ext.contracts.sampling_params import RequestOutputKind, SamplingParams
from vllm_ext.contracts.tokenizer import TokenizerLike
from vllm_ext.engine.data_requests import DataRequests, Prepared, Use, as_output
from vllm_ext.engine.outputs.output_collector import RequestOutputCollector
from vllm_ext.errors import EngineError, PluginError

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher

T = TypeVar("T")

Run = Callable[..., AsyncIterator[Any]]
"""Called with a prompt, its parameters and its request id; gives the request's outputs."""


class AsyncDataRequests:
    """Like :class:`DataRequests`. Methods that are not async run in a thread, one at a time, so that a processor needs
    no locks; those that a processor overrides as async run in the loop.
    """

    def __init__(self, dispatcher: Dispatcher, tokenizer: TokenizerLike) -> None:
        self._requests = DataRequests(dispatcher, tokenizer)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm_ext-io-processor")
        self._is_ending = False
        self._has_ended = False
        self._late: deque[str] = deque()
        """Requests to discard once the thread, which takes nothing more, has ended."""

    async def serve(
        self, use: Use, request: Mapping[str, Any], params: Any, request_id: str, run: Run
    ) -> PoolingRequestOutput[Any]:
        """Prepare a request, let ``run`` have each prompt, all at once, and make one output of theirs.

        Args:
            request_id: for the processor; no other request may ever have it, as the processor may be told to discard it
                when the request is over.

        Raises: what :meth:`DataRequests.serve` does.
        """
        requests = self._requests
        parsed = await self._in_thread(requests.parse, use, request, params)
        try:
            result = await self._either("pre_process", "pre_process_async", parsed, request_id, may_refuse=True)
            prepared = await self._in_thread(requests.prepare, use, result, params)
            with requests.naming_refusals():
                outputs = await _all_at_once(self._runs(prepared, request_id, run))
            answer = await self._either("post_process", "post_process_async", outputs, request_id)
            return as_output(request_id, outputs, answer)
        except BaseException:
            self._discard(request_id)
            raise

    def shutdown(self) -> None:
        """End the thread, when what it is doing is done; may be called twice."""
        self._is_ending = True
        self._pool.shutdown()
        self._has_ended = True
        self._discard_late()

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._pool, functools.partial(function, *args))
        except RuntimeError:
            if not self._is_ending:
                raise
            # The engine has ended, which the request is told, and then this is cancelled.
            future = loop.create_future()
        return await future

    async def _either(
        self, method: str, async_method: str, argument: Any, request_id: str, *, may_refuse: bool = False
    ) -> Any:
        """What the processor's async method gives, or that in a thread where it has none of its own."""
        processor = self._requests.processor
        if getattr(type(processor), async_method) is getattr(IOProcessor, async_method):
            return await self._in_thread(getattr(self._requests, method), argument, request_id)
        with self._requests.running(async_method, may_refuse=may_refuse):
            return await getattr(processor, async_method)(argument, request_id=request_id)

    def _discard(self, request_id: str) -> None:
        """After whatever the thread is still doing for the request, which could not be broken off."""
        try:
            self._pool.submit(self._requests.discard, request_id)
        except RuntimeError:  # it takes nothing more, and may not have ended yet
            self._late.append(request_id)
            if self._has_ended:
                self._discard_late()

    def _discard_late(self) -> None:
        while self._late:
            with contextlib.suppress(IndexError):  # another thread was first
                self._requests.discard(self._late.popleft())

    @staticmethod
    def _runs(prepared: Prepared, request_id: str, run: Run) -> list[Awaitable[Any]]:
        params = [_final_only(each) for each in prepared.params or [None] * len(prepared.prompts)]
        # Not to be mistaken for a request of the user's.
        ids = [f"{request_id}-{index}-{uuid4().hex}" for index in range(len(prepared.prompts))]
        return [_last(run(*each)) for each in zip(prepared.prompts, params, ids, strict=True)]


async def until_ended(collector: RequestOutputCollector, work: Awaitable[T]) -> T:
    """What ``work`` gives, unless the request ends before: then it is cancelled.

    Args:
        collector: gets an output where the request is aborted, or an error where the engine ends.

    Raises:
        EngineError: the request was aborted, or the engine ended.
    """
    request_id = collector.request_id
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(collector.get())
    try:
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        if working.done() and not working.cancelled():
            return working.result()
        if ending.done():
            ending.result()
            raise EngineError(f"request {request_id!r} was aborted", request_ids=[request_id])
        raise PluginError(f"the IO processor cancelled the task of request {request_id!r}")
    finally:
        for task in (working, ending):
            task.cancel()
        await asyncio.gather(working, ending, return_exceptions=True)


async def _all_at_once(each: Sequence[Awaitable[T]]) -> list[T]:
    """All results in order; where one fails, the others are cancelled, and over."""
    tasks = [asyncio.ensure_future(one) for one in each]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _final_only(params: Any) -> Any:
    """The processor gets whole outputs, whatever the parameters say."""
    if not isinstance(params, SamplingParams):
        return params
    return msgspec.structs.replace(params, output_kind=RequestOutputKind.FINAL_ONLY)


async def _last(outputs: AsyncIterator[Any]) -> Any:
    last = None
    async for output in outputs:
        last = output
    return last
