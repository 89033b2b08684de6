"""The stat loggers of one front end: what it tells them, and their end."""

from __future__ import annotations

import time
import weakref
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from vllm_ext.contracts.stats import IterationStats
from vllm_ext.dispatch.stat_loggers import ENGINE_INDEX
from vllm_ext.engine.metrics.logger_thread import SleepState, StatLoggerThread, StatRecord
from vllm_ext.engine.metrics.request_times import RequestTimes
from vllm_ext.engine.processes.cleanup import shut_down_on_error

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher
    from vllm_ext.engine.core.messages import EngineCoreRequest
    from vllm_ext.engine.core.step_stats import StepStats
    from vllm_ext.engine.scheduling.request import EngineCoreOutput

_DRAIN_S = 3.0
"""What all loggers together get at the end for the records that wait."""


class StatLoggerManager:
    """Builds the loggers and keeps the times of the requests. Where there is no logger, every method returns at once.

    Args:
        dispatcher: of an engine that is ready; it has the loggers and the clock.

    Raises:
        PluginError: a logger that the user named cannot be built; none is left running.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._clock = dispatcher.clock
        # What is told as a time of day has its seconds from the same clock.
        self._epoch = time.time() - self._clock()
        self._times = RequestTimes()
        self._threads: list[StatLoggerThread] = []
        self._finalizer = weakref.finalize(self, _end, self._threads)
        interval_s = dispatcher.settings.engine.log_stats_interval_s
        with dispatcher.activate(), shut_down_on_error(self.close):
            for source, logger in dispatcher.stat_loggers.build(dispatcher.vllm_config):
                self._threads.append(StatLoggerThread(source, logger, interval_s))

    @property
    def is_active(self) -> bool:
        """Whether there is anybody to be told. Once all loggers are dropped, what was kept for them is forgotten."""
        if any(thread.is_dropped for thread in self._threads):
            self._threads[:] = [thread for thread in self._threads if not thread.is_dropped]
            if not self._threads:
                self._times = RequestTimes()
        return bool(self._threads)

    def now(self) -> float:
        """Seconds of the engine's clock."""
        return self._clock()

    def begin(self, request_id: str, requests: Sequence[EngineCoreRequest], arrival: float) -> None:
        """A prompt is on its way to the core.

        Args:
            request_id: the user's.
            requests: what the core gets, one for each completion.
            arrival: what :meth:`now` said when it came.
        """
        if self.is_active:
            self._times.begin(request_id, requests, arrival)

    def add_step(
        self, outputs: Iterable[EngineCoreOutput], stopped: Container[str], step_stats: StepStats | None
    ) -> None:
        """A step was made; without ``step_stats`` the core was not asked to tell of it.

        Args:
            outputs: what it brought.
            stopped: requests that a stop string ended, by the core's ids.
        """
        if step_stats is None or not self.is_active:
            return
        now = self._clock()
        stats = self._iteration_stats(now)
        stats.num_preempted_reqs = step_stats.num_preempted_reqs
        self._times.note_events(step_stats.events)
        self._times.add_step(outputs, stopped, step_stats.timestamp, now, stats)
        self._put(StatRecord(step_stats.scheduler_stats, stats, ENGINE_INDEX))

    def abort(self, core_ids: Iterable[str] | None = None, step_stats: StepStats | None = None) -> None:
        """Requests were ended from outside of a step, by the core's ids, or all of them.

        Args:
            step_stats: how things stand now, where that is known.
        """
        if not self.is_active:
            return
        now = self._clock()
        stats = self._iteration_stats(now)
        if step_stats is not None:
            self._times.note_events(step_stats.events)
            stats.num_preempted_reqs = step_stats.num_preempted_reqs
        self._times.abort(self._times.ids() if core_ids is None else core_ids, now, stats)
        if stats.finished_requests or step_stats is not None:
            self._put(StatRecord(step_stats.scheduler_stats if step_stats else None, stats, ENGINE_INDEX))

    def record_sleep_state(self, *, is_asleep: bool, level: int = 0) -> None:
        """The engine went to sleep, or is awake again."""
        if self.is_active:
            self._put(SleepState(int(is_asleep), level))

    def forget(self, core_ids: Iterable[str]) -> None:
        """Requests were refused, by the core's ids: nothing is told of them."""
        self._times.abort(core_ids, 0.0, IterationStats())

    def close(self) -> None:
        """End the loggers and their threads, in bounded time; may be called twice."""
        self._finalizer()

    def _iteration_stats(self, now: float) -> IterationStats:
        return IterationStats(iteration_timestamp=self._epoch + now)

    def _put(self, record: StatRecord | SleepState) -> None:
        for thread in self._threads:
            thread.put(record)


def _end(threads: list[StatLoggerThread]) -> None:
    ending = threads.copy()
    threads.clear()
    for thread in ending:
        thread.ask_to_end()
    deadline = time.monotonic() + _DRAIN_S
    for thread in ending:
        thread.end(deadline)
