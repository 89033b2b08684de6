"""What the engine core knows for stat loggers: when requests were queued and admitted, and how things stand after a
step. The front end adds what it knows, in ``metrics/request_times.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import msgspec

from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.contracts.stats import PrefixCacheStats, SchedulerStats


class EngineCoreEvents(NamedTuple):
    """Times of what happened to requests since the step before, in seconds of the engine's clock."""

    queued: dict[str, float]
    scheduled: dict[str, float]
    """Of those admitted, also once more after a preemption."""


class StepStats(msgspec.Struct, frozen=True):
    """What the core has to say of one step; plain data."""

    timestamp: float
    """When its tokens were there, in seconds of the engine's clock."""
    scheduler_stats: SchedulerStats
    num_preempted_reqs: int
    """Preemptions since the step before."""
    events: EngineCoreEvents


class StepRecorder:
    """Collects for one engine core, whatever its scheduler is: requests by what the workers are told, which names new
    ones in any case, and the rest by the scheduler's own stats. Nothing is done for single tokens.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events = EngineCoreEvents({}, {})
        self._told = SchedulerStats()
        """The last stats that were handed out."""
        self._latest: StepStats | None = None

    def note_queued(self, request_id: str) -> None:
        """The scheduler has taken a request."""
        self._events.queued[request_id] = self._clock()

    def note_scheduled(self, scheduler_output: SchedulerOutput) -> None:
        """The scheduler has made a step."""
        new, resumed = scheduler_output.scheduled_new_reqs, scheduler_output.scheduled_cached_reqs.resumed_req_ids
        if new or resumed:
            now = self._clock()
            self._events.scheduled.update((request.req_id, now) for request in new)
            self._events.scheduled.update(dict.fromkeys(resumed, now))

    def note_step(self, stats: SchedulerStats) -> None:
        """The step's tokens are there, and the scheduler knows them."""
        self._latest = self.make(stats)

    def take(self) -> StepStats | None:
        """Of the last step, once."""
        latest, self._latest = self._latest, None
        return latest

    def make(self, stats: SchedulerStats) -> StepStats:
        """What there is to say now, with everything that has not been said."""
        before, self._told = self._told, stats
        events, self._events = self._events, EngineCoreEvents({}, {})
        found = PrefixCacheStats(
            stats.prefix_cache_requests - before.prefix_cache_requests,
            stats.prefix_cache_queries - before.prefix_cache_queries,
            stats.prefix_cache_hits - before.prefix_cache_hits,
        )
        return StepStats(
            self._clock(),
            replace(stats, prefix_cache_stats=found),
            stats.num_preemptions - before.num_preemptions,
            events,
        )
