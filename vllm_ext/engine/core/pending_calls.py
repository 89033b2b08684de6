"""Calls of the engine core's methods from an event loop, until they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from itertools import count
from typing import Any

from vllm_ext.engine.core.messages import UtilityResult
from vllm_ext.errors import EngineError


class PendingCalls:
    """Used in one event loop only."""

    def __init__(self) -> None:
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._next_id = count()

    @contextmanager
    def open(self) -> Iterator[tuple[int, asyncio.Future[Any]]]:
        """An id for a call that is made inside the block, and what its answer will be in."""
        call_id = next(self._next_id)
        self._answers[call_id] = asyncio.get_running_loop().create_future()
        try:
            yield call_id, self._answers[call_id]
        finally:
            del self._answers[call_id]

    def answer(self, result: UtilityResult) -> None:
        """Hand over an answer; EngineError for who asked where the method failed. Who asked may have gone."""
        answer = self._answers.get(result.call_id)
        if answer is None or answer.done():
            return
        if result.failure is None:
            answer.set_result(result.value)
        else:
            answer.set_exception(EngineError(result.failure))

    def fail_all(self, error: Exception) -> None:
        """There will be no more answers."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(copy(error))
