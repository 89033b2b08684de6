"""``AsyncLLM``: a model in an event loop, which its steps never block."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import msgspec

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.stats import SchedulerStats
from vllm_ext.engine.arguments import check_call, check_function, ids_of, refuse_adapter
from vllm_ext.engine.async_data_requests import AsyncDataRequests, until_ended
from vllm_ext.engine.async_requests import AsyncRequests
from vllm_ext.engine.core.async_client import AsyncCoreClient
from vllm_ext.engine.core.messages import (
    AbortRequests,
    EngineCoreDead,
    EngineCoreOutputs,
    FromCore,
    RecordStats,
    RequestRefused,
    RequestsFailed,
    UtilityResult,
)
from vllm_ext.engine.data_requests import GENERATE, POOL, Use
from vllm_ext.engine.front_end import FrontEnd
from vllm_ext.engine.inputs.input_processor import InputProcessor
from vllm_ext.engine.inputs.prompts import DataPrompt, PromptType, is_data_prompt
from vllm_ext.engine.metrics.manager import StatLoggerManager
from vllm_ext.engine.outputs.pooling_output_processor import make_output_processor
from vllm_ext.engine.processes.cleanup import shut_down_on_error
from vllm_ext.engine.sleep_calls import AsyncSleepCalls
from vllm_ext.errors import EngineError, InvalidRequest
from vllm_ext.managers import make_receipt

if TYPE_CHECKING:
    from torch import nn

    from vllm_ext.contracts.tokenizer import TokenizerLike
    from vllm_ext.dispatch.dispatcher import Dispatcher
    from vllm_ext.plan import Receipt

T = TypeVar("T")


class AsyncLLM(AsyncSleepCalls, FrontEnd):
    """A model on the chosen platform, for many concurrent tasks of one event loop.

    It is started at once, which takes seconds, and shut down by :meth:`shutdown` or at the end of ``async with``. Its
    steps run in a thread of its own; prompts are tokenized in another one. The loop is the one that it is first used
    in. Arguments and errors are those of :class:`LLM`. vLLM: ``AsyncLLM``.

    Every coroutine but :meth:`abort` raises EngineError where the engine is shut down or dead, or belongs to another
    event loop.
    """

    caller = "AsyncLLM"

    @overload
    def generate(
        self,
        prompt: DataPrompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: None = None,
        priority: int = 0,
    ) -> AsyncGenerator[PoolingRequestOutput[Any], None]: ...

    @overload
    def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]: ...

    def generate(
        self,
        prompt: DataPrompt | PromptType,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: None = None,
        priority: int = 0,
    ) -> AsyncGenerator[Any, None]:
        """Complete one prompt.

        Args:
            prompt: a text, a list of token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``; or
                ``{"data": data}`` for the IO processor.
            sampling_params: those of the model directory if omitted.
            request_id: unique among those in flight; a new one if omitted (vLLM: required).
            lora_request: nothing but ``None``, since the engine applies no adapters.
            priority: lower values come first, where ``engine.scheduling_policy`` is ``priority``; else it has to be 0.

        Yields: states of the request, each with all text and tokens so far, or what ``output_kind`` says, the last one
            with ``finished`` set. Of those that come while the reader is busy it gets the newest. Whatever ends the
            generator, also that the task is cancelled, aborts the request. For data there is one output, whose
            ``outputs`` is what the IO processor made of those of its prompts.

        Raises:
            InvalidRequest: the request cannot be served, or its id is in flight; others go on.
            EngineError: a step failed, or the scheduler did with this request, or the engine is shut down or belongs to
                another event loop; or a request with data was aborted.
            PluginError: the IO processor failed; others go on.
        """
        refuse_adapter(lora_request)
        return self._serve(GENERATE, prompt, sampling_params, request_id, priority=priority)

    def encode(
        self,
        prompt: DataPrompt | PromptType,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: None = None,
        priority: int = 0,
    ) -> AsyncGenerator[PoolingRequestOutput[Any], None]:
        """What pooling gives for one prompt.

        Args:
            prompt, request_id, lora_request: as for :meth:`generate`.
            pooling_params: what is wanted; what the model is for if omitted.
            priority: a number, lower values come first; as for :meth:`generate`.

        Yields: one output, whose ``outputs`` is a :class:`PoolingOutput`, or for data what the IO processor made of
            those of its prompts. Of a request that was aborted it has no numbers. Whatever ends the generator before
            that aborts the request.

        Raises:
            InvalidRequest, EngineError, PluginError: as of :meth:`generate`.
        """
        refuse_adapter(lora_request)
        return self._serve(POOL, prompt, pooling_params, request_id, priority=priority)

    async def _serve(
        self, use: Use, prompt: DataPrompt | PromptType, params: Any, request_id: str | None, *, priority: int
    ) -> AsyncGenerator[Any, None]:
        """The outputs of one request, of either kind; ``None`` for ``params`` are those that go with ``use``."""
        if is_data_prompt(prompt):
            yield await self._serve_data(use, prompt, params, request_id, priority)
            return
        if params is None:
            params = self.get_default_sampling_params() if use is GENERATE else PoolingParams()
        self._core.bind_to_loop()
        arrival = self._stats.now()
        internal_id, collector = self._requests.open(request_id)
        try:
            text, request = await self._in_thread(
                self.input_processor.process_inputs, internal_id, prompt, params, priority
            )
            # None at all where an abort or the end of the engine came first.
            for begun in self._requests.begin(internal_id, text, request, arrival):
                self._core.send(begun)
            finished = False
            while not finished:
                output = await collector.get()
                finished = output.finished
                yield output
        finally:
            self._abort(self._requests.close([internal_id]))

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests: their readers get a last output with ``finish_reason`` ``abort``, or an EngineError if it is
        one with data. Ids that are not in flight are passed over; InvalidRequest for what are no ids.
        """
        self._abort(self._requests.abort(ids_of(request_id)))

    async def reset_prefix_cache(self, *, reset_running_requests: bool = False) -> bool:
        """Forget what the KV cache holds for prompts to come.

        Args:
            reset_running_requests: preempt all running requests first; they are computed again.

        Returns: False, and nothing is changed, while requests use cache blocks.
        """
        return bool(await self._core.call("reset_prefix_cache", reset_running_requests=reset_running_requests))

    async def check_health(self) -> None:
        """EngineError where the engine or a worker cannot go on; it is answered between two steps."""
        await self._core.call("check_health")

    async def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call a method of all workers between two steps, in the engine's thread; see :meth:`LLM.collective_rpc`.

        Raises:
            InvalidRequest: an argument is of a wrong kind.
            EngineError: it failed, there is no such method, or no answer within ``timeout`` seconds, where it goes on.
        """
        check_call(method, timeout, args, kwargs)
        call = self._core.call("collective_rpc", method=method, timeout=timeout, args=args, kwargs=kwargs)
        try:
            results: list[Any] = await asyncio.wait_for(call, timeout)
        except TimeoutError:
            raise EngineError(f"collective_rpc: the workers did not answer {method!r} within {timeout} s") from None
        return results

    async def apply_model(self, func: Callable[[nn.Module], T]) -> list[T]:
        """What ``func`` returns for the model of each worker, by rank, between two steps; errors as of
        :meth:`collective_rpc`. An extension of vLLM's contract, where only :class:`LLM` has it.
        """
        return await self.collective_rpc("apply_model", args=(check_function(func),))

    async def start_profile(self, profile_prefix: str | None = None) -> None:
        """Begin to record what the workers do; see :meth:`LLM.start_profile`. All errors are EngineErrors."""
        await self._core.call("profile", is_start=True, profile_prefix=profile_prefix)

    async def stop_profile(self) -> None:
        """End what :meth:`start_profile` began; the traces are written."""
        await self._core.call("profile", is_start=False)

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model directory asks for (``generation_config.json``), to change and pass on as one likes. It does
        not wait for the engine. An extension of vLLM's contract, where only :class:`LLM` has it.
        """
        return copy(self.input_processor.default_sampling_params)

    def get_tokenizer(self) -> TokenizerLike:
        """The model's tokenizer, as :meth:`LLM.get_tokenizer`; it does not wait for the engine."""
        return self.tokenizer

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Of every process of the engine, this one first: what each proved to run. An extension of vLLM's contract."""
        return (make_receipt(self._bound_plan, "front end"), *self._core.receipts)

    async def get_stats(self) -> SchedulerStats:
        """Load, preemptions and use of the KV cache, between two steps. An extension of vLLM's contract."""
        return msgspec.convert(await self._core.call("get_stats"), SchedulerStats)

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return self._core.ended is None

    @property
    def is_stopped(self) -> bool:
        """Whether no request is taken any more: the engine is dead or shut down."""
        return not self.is_running

    @property
    def errored(self) -> bool:
        """The same as :attr:`is_stopped`, as in vLLM, and so true also of an engine that was shut down."""
        return self.is_stopped

    @property
    def dead_error(self) -> EngineError | None:
        """Why no request is taken any more, if none is."""
        return self._core.ended

    def shutdown(self) -> None:
        """Stop the engine; whoever is reading gets an EngineError. Waits for the step that is running; may be called
        twice, from any thread.
        """
        error = EngineError("this engine is shut down; make a new one")
        # At once: until the loop comes to it, others could ask for what the threads do not take any more.
        self._core.refuse(error)
        self._core.call_in_loop(self._end, error)
        self._finalizer()
        self._pool.shutdown()
        self._data_requests.shutdown()
        self._stats.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(EngineError("this engine is shut down; make a new one"))
        # The loop waits neither for the step that is running nor for a prompt that is at work, so others may go on.
        await asyncio.to_thread(self.shutdown)

    def _start(self, dispatcher: Dispatcher) -> None:
        self.vllm_config = dispatcher.vllm_config
        self.input_processor = InputProcessor(dispatcher.vllm_config, dispatcher.platform, dispatcher.logits_processors)
        self.tokenizer = self.input_processor.tokenizer
        self._data_requests = AsyncDataRequests(dispatcher, self.tokenizer)
        self._bound_plan = dispatcher.bound_plan
        dispatcher.load_stat_loggers()
        self._core = AsyncCoreClient(dispatcher, self._handle)
        with shut_down_on_error(self._core.shutdown):
            self._stats = StatLoggerManager(dispatcher)
        if self._stats.is_active:
            self._core.send(RecordStats())
        output_processor = make_output_processor(self.vllm_config.model_config, self.tokenizer)
        self._requests = AsyncRequests(output_processor, self._stats)
        self.input_processor.set_supported(self._core.capabilities)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm_ext-tokenizer")
        # Neither of the threads holds on to this object, so that it can be collected while they live.
        self._finalizer = weakref.finalize(self, _stop, self._core, self._pool)

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        """What ``function`` returns, computed beside the loop."""
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        except RuntimeError:
            # Another thread has shut the engine down since it was looked at.
            if self._core.ended is None:
                raise
            raise copy(self._core.ended) from None
        try:
            return await future
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._core.ended is None or not future.cancelled() or (task is not None and task.cancelling()):
                raise
            # Nobody cancelled the caller: it was waiting here when the engine was shut down.
            raise copy(self._core.ended) from None

    async def _serve_data(
        self, use: Use, request: DataPrompt, params: Any, request_id: str | None, priority: int
    ) -> PoolingRequestOutput[Any]:
        """The one output of a request with data, each prompt of which is served as a request of its own."""
        self._core.bind_to_loop()
        run = functools.partial(self._serve, use, priority=priority)
        internal_id, collector = self._requests.open(request_id)
        try:
            output = await until_ended(collector, self._data_requests.serve(use, request, params, internal_id, run))
        finally:
            self._abort(self._requests.close([internal_id]))
        return dataclasses.replace(output, request_id=collector.request_id)

    def _abort(self, core_ids: list[str]) -> None:
        if core_ids:
            self._core.send(AbortRequests(core_ids))

    def _handle(self, message: FromCore) -> None:
        """Take a message of the core; called in the loop."""
        if isinstance(message, EngineCoreOutputs):
            if stopped := self._requests.process_outputs(message.outputs, message.step_stats):
                self._core.send(AbortRequests(stopped, "stop"))
        elif isinstance(message, RequestRefused):
            self._requests.fail([message.request_id], InvalidRequest(message.reason))
        elif isinstance(message, RequestsFailed):
            self._abort(self._requests.fail_step(message.request_ids, message.reason))
        elif isinstance(message, UtilityResult):
            self._core.take_answer(message)
        elif isinstance(message, EngineCoreDead):
            self._end(EngineError(f"the engine core stopped, so this engine is of no use any more: {message.reason}"))

    def _end(self, error: EngineError) -> None:
        """Take no more requests, and tell ``error`` to everybody who waits; the first reason stays."""
        self._requests.fail_all(self._core.end(error))


def _stop(core: AsyncCoreClient, pool: ThreadPoolExecutor) -> None:
    core.shutdown()
    # Nobody waits for these threads here: garbage may be collected in one of them.
    pool.shutdown(wait=False, cancel_futures=True)
