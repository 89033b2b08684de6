"""An engine core in a thread of its own, for a front end that must never wait for a step."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING

from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.core.loop import EngineCoreLoop
from vllm_ext.engine.core.messages import Capabilities, FromCore, Shutdown, ToCore

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher
    from vllm_ext.plan import Receipt


class ThreadCoreClient:
    """Starts an engine core in a new thread, which makes, runs and ends it; returns once it is ready.

    Args:
        dispatcher: gives the configuration and the executor.
        on_message: takes what comes from the core, in order; called in the core's thread, and must not wait.

    Raises:
        EngineError, PluginError, ModelError: what prevented the start; no thread is left.
    """

    def __init__(self, dispatcher: Dispatcher, on_message: Callable[[FromCore], None]) -> None:
        self._inbox: SimpleQueue[ToCore] = SimpleQueue()
        started: Future[tuple[Capabilities, tuple[Receipt, ...]]] = Future()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run,
            args=(_live, dispatcher, self._inbox, on_message, started),
            name="vllm_ext-engine-core",
            # A program that forgot to shut its engine down must still be able to end.
            daemon=True,
        )
        self._thread.start()
        try:
            self.capabilities, self.receipts = started.result()
            """What the workers can do, and what those with processes of their own proved to run."""
        except BaseException:
            # Also an interrupt, while the core is still starting.
            self.shutdown()
            raise

    def send(self, message: ToCore) -> None:
        """Hand a message to the core, which takes it before its next step; a core that has stopped never will."""
        self._inbox.put(message)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def shutdown(self) -> None:
        """Stop the core and wait for the end of its thread, i.e. of the step that is running; may be called twice."""
        self._inbox.put(Shutdown())
        # Garbage may be collected in any thread.
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _live(
    dispatcher: Dispatcher,
    inbox: SimpleQueue[ToCore],
    on_message: Callable[[FromCore], None],
    started: Future[tuple[Capabilities, tuple[Receipt, ...]]],
) -> None:
    """The thread: make the core, say how that went, and serve it."""
    try:
        core = EngineCore(dispatcher)
    except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits
        started.set_exception(error)
        return
    started.set_result((core.capabilities, core.executor.receipts))
    EngineCoreLoop(core, inbox, on_message).run()
