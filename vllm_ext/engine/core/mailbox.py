"""The way of messages from an engine core's thread into an event loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable

from vllm_ext.engine.core.messages import FromCore


class Mailbox:
    """Takes messages in any thread and hands each to ``handle``, a bound method, in the loop that it is opened for.

    The object of ``handle`` is not kept alive. Messages that come when it is gone, or its loop is closed, are for
    nobody, and dropped.
    """

    def __init__(self, handle: Callable[[FromCore], None]) -> None:
        self._handle = weakref.WeakMethod(handle)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._early: list[FromCore] = []

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver in ``loop`` from now on, and what has come already: a core may have died before it was used."""
        with self._lock:
            self._loop = loop
            for message in self._early:
                self._deliver(message)

    def put(self, message: FromCore) -> None:
        """Deliver ``message``; does not wait."""
        with self._lock:
            if self._loop is None:
                self._early.append(message)
                return
        try:
            self._loop.call_soon_threadsafe(self._deliver, message)
        except RuntimeError:
            # The loop was closed before the engine was shut down.
            if not self._loop.is_closed():
                raise

    def _deliver(self, message: FromCore) -> None:
        if (handle := self._handle()) is not None:
            handle(message)
