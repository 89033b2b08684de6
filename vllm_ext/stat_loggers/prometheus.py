"""``prometheus``: counters, gauges and histograms under vLLM's names, for whoever serves the registry."""

from __future__ import annotations

import weakref
from typing import Any

from vllm_ext.contracts.stat_logger import StatLoggerBase
from vllm_ext.contracts.stats import FinishedRequestStats, IterationStats, SchedulerStats
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.stat_loggers.prometheus_families import REGISTRY, SLEEP_STATES, CollectorRegistry, Families, Metrics


class PrometheusStatLogger(StatLoggerBase):
    """Keeps the metrics of one engine in a registry of prometheus_client, which others may share.

    The labels are vLLM's: ``model_name``, and ``engine``, which is ``engine_index``, or the next number that no living
    engine of this process has with that model in that registry.

    Args:
        registry: by default that of prometheus_client, which its ``generate_latest()`` and servers show.
    """

    def __init__(
        self, vllm_config: VllmConfig, engine_index: int = 0, *, registry: CollectorRegistry = REGISTRY
    ) -> None:
        self._cache_config = vllm_config.cache_config
        self._families = Families.of(registry)
        model_name = vllm_config.model_config.model
        self.engine_label = self._families.reserve(model_name, engine_index)
        self._metrics: Metrics = self._families.metrics_of(model_name, self.engine_label)
        weakref.finalize(self, self._families.release, model_name, self.engine_label).atexit = False
        self.record_sleep_state(0, 0)

    def log_engine_initialized(self) -> None:
        """Publish the KV cache's shape."""
        config = self._cache_config
        shape = {
            "block_size": config.block_size,
            "num_gpu_blocks": config.num_gpu_blocks,
            "enable_prefix_caching": config.enable_prefix_caching,
        }
        self._families.publish_cache_config(self.engine_label, {name: str(value) for name, value in shape.items()})

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Enter that the engine went to sleep (1) or is awake (0)."""
        now = ("", *SLEEP_STATES[1:])[level] if is_awake else SLEEP_STATES[0]
        for state in SLEEP_STATES:
            self._metrics["engine_sleep_state", state].set(state == now)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Enter a step."""
        if scheduler_stats is not None:
            self._record_scheduler(scheduler_stats)
        if iteration_stats is not None:
            self._record_iteration(iteration_stats)

    def _record_scheduler(self, stats: SchedulerStats) -> None:
        metrics = self._metrics
        metrics["num_requests_running"].set(stats.num_running_reqs)
        metrics["num_requests_waiting"].set(stats.num_waiting_reqs)
        metrics["kv_cache_usage_perc"].set(stats.kv_cache_usage)
        metrics["prefix_cache_queries"].inc(stats.prefix_cache_stats.queries)
        metrics["prefix_cache_hits"].inc(stats.prefix_cache_stats.hits)

    def _record_iteration(self, stats: IterationStats) -> None:
        metrics = self._metrics
        metrics["num_preemptions"].inc(stats.num_preempted_reqs)
        metrics["prompt_tokens"].inc(stats.num_prompt_tokens)
        metrics["generation_tokens"].inc(stats.num_generation_tokens)
        if stats.num_prompt_tokens or stats.num_generation_tokens:
            metrics["iteration_tokens_total"].observe(stats.num_prompt_tokens + stats.num_generation_tokens)
        for name, values in (
            ("time_to_first_token_seconds", stats.time_to_first_tokens_iter),
            ("inter_token_latency_seconds", stats.inter_token_latencies_iter),
            ("request_params_n", stats.n_params_iter),
            ("request_max_num_generation_tokens", stats.max_num_generation_tokens_iter),
        ):
            observe = metrics[name].observe
            for value in values:
                observe(value)
        for finished in stats.finished_requests:
            self._record_finished(finished)

    def _record_finished(self, stats: FinishedRequestStats) -> None:
        metrics = self._metrics
        metrics["request_success", stats.finish_reason].inc()
        metrics["e2e_request_latency_seconds"].observe(stats.e2e_latency)
        metrics["request_queue_time_seconds"].observe(stats.queued_time)
        metrics["request_prefill_time_seconds"].observe(stats.prefill_time)
        metrics["request_inference_time_seconds"].observe(stats.inference_time)
        metrics["request_decode_time_seconds"].observe(stats.decode_time)
        metrics["request_prompt_tokens"].observe(stats.num_prompt_tokens)
        metrics["request_generation_tokens"].observe(stats.num_generation_tokens)
        if stats.num_generation_tokens > 1:
            metrics["request_time_per_output_token_seconds"].observe(stats.mean_time_per_output_token)
        if stats.max_tokens_param is not None:
            metrics["request_params_max_tokens"].observe(stats.max_tokens_param)
