"""A stat logger in a thread of its own, so that whatever it does, no step waits for it or fails by it."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from vllm_ext.contracts.stat_logger import StatLoggerBase
from vllm_ext.contracts.stats import IterationStats, SchedulerStats
from vllm_ext.errors import innermost_cause

logger = logging.getLogger(__name__)

MAX_WAITING = 1024
"""Records that may wait for a logger; further ones are lost."""
MAX_FAILURES = 5
"""How often a method may fail, one time after the other, before its logger is dropped."""
_GATHER_S = 0.05
"""What an idle logger waits after the first record, for more to come: to wake a thread for each step costs the step
more than all that is measured."""
_LAST_CALL_S = 2.0
"""What a logger gets for the call that it is in, when its time is up."""


class StatRecord(NamedTuple):
    """Arguments of one call of ``record()``."""

    scheduler_stats: SchedulerStats | None
    iteration_stats: IterationStats | None
    engine_idx: int


class SleepState(NamedTuple):
    """Arguments of one call of ``record_sleep_state()``."""

    is_asleep: int
    level: int


class StatLoggerThread:
    """Calls the methods of one logger, one after the other.

    Args:
        source: whose it is, for messages.
        interval_s: seconds between two calls of ``log()``.
    """

    def __init__(self, source: str, stat_logger: StatLoggerBase, interval_s: float) -> None:
        self._source = source
        self._logger = stat_logger
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._records: deque[StatRecord | SleepState] = deque()
        self._num_put = 0
        self._num_lost = 0
        self._failures: Counter[str] = Counter()
        """By method, since it last worked."""
        self._has_failed = False
        self._is_closing = False
        self.is_dropped = False
        """Whether it has failed so often that it is not called any more."""
        # What belongs to the engine, such as current_platform, is what the logger sees.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run,
            args=(self._run,),
            name="vllm_ext-stat-logger",
            # A program that forgot to shut its engine down must still be able to end.
            daemon=True,
        )
        self._thread.start()

    def put(self, record: StatRecord | SleepState) -> None:
        """Let the logger have a record; one that is too far behind loses it."""
        with self._changed:
            if self.is_dropped or self._is_closing:
                return
            self._num_put += 1
            if is_lost := len(self._records) >= MAX_WAITING:
                self._num_lost += 1
            else:
                self._records.append(record)
                if len(self._records) == 1:
                    self._changed.notify()
        if is_lost and self._num_lost == 1:
            logger.warning(
                "%s is behind by %d records, so that the next ones are lost to it; how many, is said at the end",
                self._source,
                MAX_WAITING,
            )

    def ask_to_end(self) -> None:
        """Take no more records, and end once those that wait are done."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def end(self, deadline: float) -> None:
        """Wait for the end of the thread, and say what was lost. What still waits at ``deadline``, on
        ``time.monotonic()``, is lost.
        """
        # Garbage may be collected in any thread.
        if threading.current_thread() is self._thread:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            with self._changed:
                self._num_lost += len(self._records)
                self._records.clear()
            self._thread.join(_LAST_CALL_S)
        if self._num_lost:
            logger.warning(
                "%s was too slow: %d of %d records are lost to it", self._source, self._num_lost, self._num_put
            )
        if self._thread.is_alive():
            logger.warning("%s does not return from a call, so that its thread is left behind", self._source)

    def _run(self) -> None:
        """The thread."""
        self._call("log_engine_initialized", self._logger.log_engine_initialized)
        due = time.monotonic() + self._interval_s
        while not self.is_dropped:
            record = self._next_record(due)
            if isinstance(record, SleepState):
                self._call("record_sleep_state", self._logger.record_sleep_state, *record)
            elif record is not None:
                self._call("record", self._record, record)
            elif self._is_closing:
                self._call("log", self._logger.log)
                return
            if time.monotonic() >= due:
                self._call("log", self._logger.log)
                due = time.monotonic() + self._interval_s

    def _next_record(self, due: float) -> StatRecord | SleepState | None:
        """Wait for a record; ``None`` where none came until ``due``, or none will come any more."""
        with self._changed:
            if not self._records:
                self._changed.wait_for(lambda: self._records or self._is_closing, max(0.0, due - time.monotonic()))
                if self._records:
                    self._changed.wait_for(lambda: self._is_closing, _GATHER_S)
            # At the end, what waits may be taken away at any time.
            return self._records.popleft() if self._records else None

    def _record(self, record: StatRecord) -> None:
        # By keyword, as vLLM does it.
        self._logger.record(
            scheduler_stats=record.scheduler_stats,
            iteration_stats=record.iteration_stats,
            mm_cache_stats=None,
            engine_idx=record.engine_idx,
        )

    def _call(self, name: str, method: Callable[..., None], *args: Any) -> None:
        """Call a method of the logger; a failure is reported once, too many in a row drop the logger."""
        try:
            method(*args)
            self._failures[name] = 0
            return
        except BaseException as error:  # noqa: BLE001 - foreign code, at the top of its own thread
            cause, shown = innermost_cause(error), error
        self._failures[name] += 1
        if not self._has_failed:
            self._has_failed = True
            logger.warning(
                "%s failed in %s(): %s. Further failures are not reported", self._source, name, cause, exc_info=shown
            )
        if self._failures[name] >= MAX_FAILURES:
            with self._changed:
                self.is_dropped = True
                self._records.clear()
            logger.warning(
                "%s is dropped: %s() has failed %d times one after the other, at last with %s",
                self._source,
                name,
                MAX_FAILURES,
                cause,
            )
