"""An engine core, in a thread or in a process, seen from the tasks of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy
from itertools import count
from typing import TYPE_CHECKING, Any

from vllm_ext.engine.core.mailbox import Mailbox
from vllm_ext.engine.core.messages import FromCore, ToCore, UtilityCall, UtilityMethod, UtilityResult
from vllm_ext.engine.core.process_client import ProcessCoreClient
from vllm_ext.engine.core.thread_client import ThreadCoreClient
from vllm_ext.engine.processes.forked import own_process_check
from vllm_ext.errors import EngineError

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher


class AsyncCoreClient:
    """Belongs to the event loop that it is first used in, and to the process that made it.

    Args:
        dispatcher: gives the configuration and the executor, and says whether the core has a process of its own.
        handle: a bound method that takes what the core sends, in order, in the loop. Its object is not kept alive, so
            that the engine can be collected while the core's threads live.

    Raises:
        EngineError, PluginError, ModelError: what prevented the start; no thread and no process is left.
    """

    def __init__(self, dispatcher: Dispatcher, handle: Callable[[FromCore], None]) -> None:
        self._check_own_process = own_process_check()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        """Of the calls that wait for one."""
        self._call_ids = count()
        self.ended: EngineError | None = None
        """Why it is of no use any more, if so."""
        self._mailbox = Mailbox(handle)
        client_cls = ProcessCoreClient if dispatcher.settings.engine.core_process else ThreadCoreClient
        self._client: ThreadCoreClient | ProcessCoreClient = client_cls(dispatcher, self._mailbox.put)
        self.capabilities, self.receipts = self._client.capabilities, self._client.receipts
        """What the workers can do, and what each process besides this one proved to run."""

    def bind_to_loop(self) -> None:
        """Belong to the running loop from the first use on.

        Raises:
            EngineError: it belongs to another loop or another process, or has ended.
        """
        self._check_own_process()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._mailbox.open(loop)
        if self._loop is not loop:
            raise EngineError(
                "this engine belongs to another event loop, the one that it was first used in; make an engine in the "
                "loop that uses it"
            )
        if self.ended is not None:
            raise copy(self.ended)

    def send(self, message: ToCore) -> None:
        """Hand a message to the core, which takes it before its next step; one that has ended never will."""
        self._client.send(message)

    async def call(self, method: UtilityMethod, /, **kwargs: Any) -> Any:
        """What a method of the core returns, which is called between two steps.

        Raises:
            EngineError: it failed, or as of :meth:`bind_to_loop`.
        """
        self.bind_to_loop()
        call_id = next(self._call_ids)
        answer = self._answers[call_id] = asyncio.get_running_loop().create_future()
        try:
            self.send(UtilityCall(call_id, method, kwargs))
            return await answer
        finally:
            del self._answers[call_id]

    def take_answer(self, result: UtilityResult) -> None:
        """Hand an answer to who called, unless nobody waits for it any more."""
        answer = self._answers.get(result.call_id)
        if answer is None or answer.done():
            return
        if result.failure is None:
            answer.set_result(result.value)
        else:
            answer.set_exception(EngineError(result.failure))

    def refuse(self, error: EngineError) -> EngineError:
        """Take no more calls; those that wait are told by :meth:`end`. May be called in any thread.

        Returns: why: ``error``, or what was the reason before.
        """
        if self.ended is None:
            self.ended = error
        return self.ended

    def end(self, error: EngineError) -> EngineError:
        """As :meth:`refuse`, and tell those that wait; where the loop runs, in its thread."""
        error = self.refuse(error)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(copy(error))
        return error

    def call_in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call ``function`` in the loop where that runs in another thread, which may be a little later; else here."""
        try:
            is_inside = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_inside = False
        if self._loop is None or is_inside or not self._loop.is_running():
            function(*args)
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # It was closed meanwhile.
            if not self._loop.is_closed():
                raise
            function(*args)

    @property
    def is_alive(self) -> bool:
        """Whether its thread or process runs."""
        return self._client.is_alive

    def shutdown(self) -> None:
        """Stop the core, and wait for the end of its thread or process; may be called twice."""
        self._client.shutdown()
