"""Two stat loggers. All methods of one are called in one thread, so that neither needs a lock."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_ext import AggregateStatLoggerBase, StatLoggerBase, Unavailable

if TYPE_CHECKING:
    from vllm_ext import IterationStats, SchedulerStats
    from vllm_ext.contracts.vllm_config import VllmConfig


class Totals(StatLoggerBase):
    """Adds up what one engine did. The newest one is ``Totals.latest``, for a program to look at."""

    latest: Totals | None = None

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self.model = vllm_config.model_config.model
        self.engine_index = engine_index
        self.calls: list[str] = []
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.most_running = 0
        Totals.latest = self

    def log_engine_initialized(self) -> None:
        self.calls.append("log_engine_initialized")

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        self.calls.append("record")
        if scheduler_stats is not None:
            self.most_running = max(self.most_running, scheduler_stats.num_running_reqs)
            self.counts["cached tokens"] += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.counts["prompt tokens"] += iteration_stats.num_prompt_tokens
            self.counts["generated tokens"] += iteration_stats.num_generation_tokens
            self.counts["first tokens"] += len(iteration_stats.time_to_first_tokens_iter)
            self.reasons.update(ended.finish_reason for ended in iteration_stats.finished_requests)

    def log(self) -> None:
        self.calls.append("log")


class Report(AggregateStatLoggerBase):
    """Writes tokens by engine to the file that ``options: {report: {path: FILE}}`` names; declines without one."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None:
        path = vllm_config.additional_config.get("report", {}).get("path")
        if path is None:
            raise Unavailable("options.report.path names no file")
        self._path = Path(path)
        self._num_tokens = dict.fromkeys(engine_indexes, 0)
        self._is_ready = False

    def log_engine_initialized(self) -> None:
        self._is_ready = True

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if iteration_stats is not None:
            self._num_tokens[engine_idx] += iteration_stats.num_generation_tokens

    def log(self) -> None:
        self._path.write_text(json.dumps({"ready": self._is_ready, "tokens": self._num_tokens}))
