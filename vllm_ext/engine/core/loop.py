"""The life of an engine core that is reached by messages: take what has come, make a step, send what it brought.

It does not know what carries the messages: a thread's queue, or a pipe to another process.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.core.messages import (
    AbortRequests,
    EngineCoreDead,
    EngineCoreOutputs,
    EngineCoreRequest,
    FromCore,
    RecordStats,
    RequestRefused,
    RequestsFailed,
    Shutdown,
    ToCore,
    UtilityCall,
    UtilityResult,
)
from vllm_ext.engine.scheduling.request import RequestStatus
from vllm_ext.errors import EngineError, InvalidRequest, VllmExtError, innermost_cause, plugin_traceback

logger = logging.getLogger(__name__)

_STATUS = {"stop": RequestStatus.FINISHED_STOPPED, "abort": RequestStatus.FINISHED_ABORTED}


class _WorkersGone(msgspec.Struct):
    """From the executor, in whatever thread it finds out: no step can be made any more."""

    error: Exception


class EngineCoreLoop:
    """Serves ``inbox`` until :class:`Shutdown` comes.

    Args:
        send: takes what goes to the front end, in order; it must not wait for anything.
    """

    def __init__(self, core: EngineCore, inbox: SimpleQueue[ToCore], send: Callable[[FromCore], None]) -> None:
        self._core = core
        self._inbox: SimpleQueue[Any] = inbox
        self._send = send
        core.executor.register_failure_callback(lambda error: inbox.put(_WorkersGone(error)))  # type: ignore[arg-type]

    def run(self) -> None:
        """Work until told to stop. The core is shut down at the end, whatever ended it."""
        try:
            self._check_workers()
            while self._take_messages():
                self._step()
        except BaseException as error:
            if isinstance(error, VllmExtError):
                # Of a step, which has been said, or of workers that ended: no code here is to blame.
                logger.error("the engine core stops: %s", error)
            else:
                logger.exception("the engine core stops")
            self._send(EngineCoreDead(innermost_cause(error)))
        finally:
            self._core.shutdown()

    def _take_messages(self) -> bool:
        """Take all that has come; wait for something where there is nothing to do. False once it is to stop."""
        try:
            message = self._inbox.get(block=not self._core.has_requests())
            while not isinstance(message, Shutdown):
                self._handle(message)
                message = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _check_workers(self) -> None:
        """Raise if the workers were gone before anybody could be told."""
        if (error := self._core.executor.failure) is not None:
            raise error

    def _handle(self, message: EngineCoreRequest | AbortRequests | UtilityCall | RecordStats | _WorkersGone) -> None:
        if isinstance(message, EngineCoreRequest):
            try:
                self._core.add_request(message.as_request())
            except InvalidRequest as error:
                self._send(RequestRefused(message.request_id, str(error)))
            except EngineError as error:
                self._fail([message.request_id], error)
        elif isinstance(message, AbortRequests):
            self._core.abort_requests(message.request_ids, _STATUS[message.finish_reason])
        elif isinstance(message, RecordStats):
            self._core.record_stats()
        elif isinstance(message, _WorkersGone):
            raise message.error
        else:
            self._send(self._call(message))

    def _call(self, message: UtilityCall) -> UtilityResult:
        try:
            value = getattr(self._core, message.method)(**message.kwargs)
            # What a worker returns may be of any kind; how it gets elsewhere is for what carries the messages.
            is_free = message.method == "collective_rpc"
            return UtilityResult(message.call_id, value if is_free else msgspec.to_builtins(value))
        except (Exception, SystemExit, CancelledError) as error:
            if message.method in ("collective_rpc", "profile"):
                # It is in nobody's hands but the user's, who gets the text alone.
                logger.exception("%s failed", message.method)
            is_ours = isinstance(error, VllmExtError)
            return UtilityResult(message.call_id, failure=str(error) if is_ours else innermost_cause(error))

    def _step(self) -> None:
        try:
            outputs = self._core.step()
        except EngineError as error:
            self._fail(error.request_ids, error)
            return
        step_stats = self._core.take_step_stats()
        if outputs or step_stats is not None:
            self._send(EngineCoreOutputs(outputs, step_stats))

    def _fail(self, request_ids: Sequence[str], error: EngineError) -> None:
        # Only the text crosses over; where it comes from is in the log.
        logger.error("%s", f"{error}\n{plugin_traceback(error)}".rstrip())
        self._send(RequestsFailed(list(request_ids), str(error)))
