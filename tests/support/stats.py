"""Stat loggers that keep what they are told, and a clock that goes only when it is told to."""

from __future__ import annotations

import threading

from vllm_ext import StatLoggerBase
from vllm_ext.contracts.stats import FinishedRequestStats, IterationStats, SchedulerStats


class FakeClock:
    """Seconds; it stands still until :meth:`advance`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Kept(StatLoggerBase):
    """Keeps all records; as a factory, hand over :meth:`make`. What is kept is complete once the engine has ended."""

    def __init__(self, vllm_config=None, engine_index: int = 0) -> None:
        self.arguments = (vllm_config, engine_index)
        self.records: list[tuple[SchedulerStats | None, IterationStats | None]] = []
        self.sleep_states: list[tuple[int, int]] = []
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.has_record = threading.Event()

    def make(self, vllm_config, engine_index: int) -> Kept:
        self.arguments = (vllm_config, engine_index)
        return self

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0) -> None:
        self._note("record")
        self.records.append((scheduler_stats, iteration_stats))
        self.has_record.set()

    def log_engine_initialized(self) -> None:
        self._note("log_engine_initialized")

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        self.sleep_states.append((is_awake, level))

    def log(self) -> None:
        self._note("log")

    def _note(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.current_thread().name)

    @property
    def steps(self) -> list[tuple[SchedulerStats, IterationStats]]:
        """Records of steps that brought tokens."""
        return [(told, brought) for told, brought in self.records if brought.num_generation_tokens]

    @property
    def finished(self) -> dict[str, FinishedRequestStats]:
        """Requests that have ended, by id; each of them once."""
        everything = [each for _, brought in self.records for each in brought.finished_requests]
        by_id = {each.request_id: each for each in everything}
        assert len(by_id) == len(everything)
        return by_id

    def total(self, name: str) -> int:
        """The sum of a field of :class:`IterationStats`."""
        return sum(getattr(brought, name) for _, brought in self.records)

    def all_of(self, name: str) -> list:
        """The entries of a list of :class:`IterationStats`."""
        return [each for _, brought in self.records for each in getattr(brought, name)]
