"""What one request has for the task that reads it."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Any

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput
from vllm_ext.engine.outputs.deltas import Deltas


class RequestOutputCollector:
    """Holds the newest output, in place of one that was not read: since each has all that every completion of the
    request has so far, a slow reader sees fewer states and misses nothing, and memory does not grow.

    To be used in one event loop.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        """The id that the user gave."""
        self.deltas: Deltas | None = None
        """Where the reader wants what is new, and not all so far."""
        self._output: Any = None
        self._error: Exception | None = None
        self._ready = asyncio.Event()

    def put(self, output: RequestOutput | PoolingRequestOutput[Any]) -> None:
        """Add a newer state of the request, which is the reader's from now on; it gets the id that the user gave."""
        output.request_id = self.request_id
        self._output = output
        self._ready.set()

    def put_error(self, error: Exception) -> None:
        """Let the reader have ``error`` after what it has not read yet."""
        self._error = error
        self._ready.set()

    async def get(self) -> Any:
        """The newest state, once there is one that was not read.

        Raises:
            InvalidRequest, EngineError: what ended the request.
        """
        while self._output is None:
            if self._error is not None:
                # Others may be reading the same error.
                raise copy(self._error)
            self._ready.clear()
            await self._ready.wait()
        output, self._output = self._output, None
        return output if self.deltas is None else self.deltas.added_by(output)
