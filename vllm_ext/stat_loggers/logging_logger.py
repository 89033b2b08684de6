"""``logging``: a line in the log, every few seconds, while there is something to tell."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from vllm_ext.contracts.stat_logger import StatLoggerBase
from vllm_ext.contracts.stats import IterationStats, SchedulerStats
from vllm_ext.contracts.vllm_config import VllmConfig

logger = logging.getLogger(__name__)


class LoggingStatLogger(StatLoggerBase):
    """Throughput and hit rate since the line before, and how things stand; at level INFO.

    An engine with nothing to do is silent after one more line, which says so.

    Args:
        clock: seconds, by which throughput is measured.
    """

    def __init__(
        self, vllm_config: VllmConfig, engine_index: int = 0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._num_blocks = vllm_config.cache_config.num_gpu_blocks
        self._block_size = vllm_config.cache_config.block_size
        self._engine_index = engine_index
        self._clock = clock
        self._scheduler_stats = SchedulerStats()
        self._was_busy = False
        self._start_anew()

    def log_engine_initialized(self) -> None:
        """Say how large the KV cache is."""
        if self._num_blocks is not None:
            num_tokens = self._num_blocks * self._block_size
            logger.info("engine %d: KV cache of %d blocks, %d tokens", self._engine_index, self._num_blocks, num_tokens)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add up what came."""
        if iteration_stats is not None:
            self._num_prompt_tokens += iteration_stats.num_prompt_tokens
            self._num_generation_tokens += iteration_stats.num_generation_tokens
            self._num_preempted += iteration_stats.num_preempted_reqs
        if scheduler_stats is not None:
            self._scheduler_stats = scheduler_stats
            self._num_queries += scheduler_stats.prefix_cache_stats.queries
            self._num_hits += scheduler_stats.prefix_cache_stats.hits

    def log(self) -> None:
        """Write the line, and begin to count anew."""
        stats = self._scheduler_stats
        is_busy = bool(
            self._num_prompt_tokens or self._num_generation_tokens or stats.num_running_reqs or stats.num_waiting_reqs
        )
        if is_busy or self._was_busy:
            # A clock may stand still where the end comes at once.
            seconds = max(self._clock() - self._since, 1e-9)
            logger.info(
                "engine %d: prompts %.1f tokens/s, generation %.1f tokens/s, running %d requests, waiting %d, "
                "preempted %d, KV cache in use %.1f %%, prefix cache hit rate %.1f %%",
                self._engine_index,
                self._num_prompt_tokens / seconds,
                self._num_generation_tokens / seconds,
                stats.num_running_reqs,
                stats.num_waiting_reqs,
                self._num_preempted,
                100 * stats.kv_cache_usage,
                100 * self._num_hits / self._num_queries if self._num_queries else 0.0,
            )
        self._was_busy = is_busy
        self._start_anew()

    def _start_anew(self) -> None:
        self._since = self._clock()
        self._num_prompt_tokens = self._num_generation_tokens = self._num_preempted = 0
        self._num_queries = self._num_hits = 0
