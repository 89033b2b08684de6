"""What one request has for the task that reads it."""

from __future__ import annotations

import asyncio
from copy import copy
from dataclasses import replace
from typing import Any

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput


class RequestOutputCollector:
    """Holds at most one output. What comes while the reader is busy is merged into it: since each output has all that
    its completions have so far, a slow reader sees fewer states and misses nothing, and memory does not grow.

    To be used in one event loop.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        """The id that the user gave."""
        self._output: Any = None
        self._error: Exception | None = None
        self._ready = asyncio.Event()

    def put(self, output: RequestOutput | PoolingRequestOutput[Any]) -> None:
        """Add a newer state of the request, which is the reader's from now on; it gets the id that the user gave."""
        output.request_id = self.request_id
        # What pools has one state only.
        self._output = output if self._output is None else merge_outputs(self._output, output)  # type: ignore[arg-type]
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
        return output


def merge_outputs(earlier: RequestOutput, later: RequestOutput) -> RequestOutput:
    """One state for two: ``later``, and the completions of ``earlier`` about which it says nothing."""
    known = {completion.index for completion in later.outputs}
    kept = [completion for completion in earlier.outputs if completion.index not in known]
    if not kept:
        return later
    return replace(later, outputs=sorted([*kept, *later.outputs], key=lambda completion: completion.index))
