"""The numbers that stat loggers are given (vLLM's ``vllm.v1.metrics.stats``): what they are, and since when they count.

Durations are in seconds of one monotonic clock. Several loggers are given the same objects, which are only read. What
vLLM counts of parts that this engine has not is there with vLLM's value for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from vllm_ext.contracts.outputs import FinishReason


@dataclass(frozen=True, slots=True)
class PrefixCacheStats:
    """What was looked for in the prefix cache since the record before. vLLM: ``PrefixCacheStats``."""

    requests: int = 0
    """Requests that were admitted; one that was preempted is admitted again."""
    queries: int = 0
    """Tokens of these requests."""
    hits: int = 0
    """Those of the tokens that were in the cache."""

    reset: ClassVar[bool] = False
    preempted_requests: ClassVar[int] = 0
    preempted_queries: ClassVar[int] = 0
    preempted_hits: ClassVar[int] = 0
    """vLLM's: that the cache was reset is not told here, and requests that were preempted are among the others."""


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """How things stand after a step. vLLM: ``SchedulerStats``.

    What counts since the engine started is an extension of vLLM's class.
    """

    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    """Requests not admitted yet, and preempted ones."""
    num_preemptions: int = 0
    """Since the engine started."""
    kv_cache_usage: float = 0.0
    """The share of the KV cache's blocks that requests use, from 0 to 1."""
    prefix_cache_queries: int = 0
    """Tokens of the requests admitted since the engine started; one that was preempted counts again."""
    prefix_cache_hits: int = 0
    """Those of them that were in the prefix cache."""
    prefix_cache_requests: int = 0
    """Requests admitted since the engine started."""
    prefix_cache_stats: PrefixCacheStats = PrefixCacheStats()
    """The last three since the record before. Of an engine that was asked for its stats it is empty."""

    num_skipped_waiting_reqs: ClassVar[int] = 0
    step_counter: ClassVar[int] = 0
    current_wave: ClassVar[int] = 0
    connector_prefix_cache_stats: ClassVar[Any] = None
    kv_cache_eviction_events: ClassVar[tuple[Any, ...]] = ()
    spec_decoding_stats: ClassVar[Any] = None
    kv_connector_stats: ClassVar[Any] = None
    ec_connector_stats: ClassVar[Any] = None
    waiting_lora_adapters: ClassVar[Mapping[str, int]] = MappingProxyType({})
    running_lora_adapters: ClassVar[Mapping[str, int]] = MappingProxyType({})
    cudagraph_stats: ClassVar[Any] = None
    perf_stats: ClassVar[Any] = None
    iteration_details: ClassVar[Any] = None
    num_kv_fetch_reqs_by_stage: ClassVar[Mapping[str, int]] = MappingProxyType({})


@dataclass(slots=True)
class FinishedRequestStats:
    """One request that has ended. vLLM: ``FinishedRequestStats``. With ``n`` above 1 each completion is one."""

    finish_reason: FinishReason
    """``abort`` also where a step failed."""
    request_id: str = ""
    """As the user knows it."""
    e2e_latency: float = 0.0
    """Seconds from the request's arrival to its end."""
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    max_tokens_param: int | None = None
    """The request's ``max_tokens``."""
    queued_time: float = 0.0
    """Seconds in the scheduler's queue, until it was admitted first."""
    prefill_time: float = 0.0
    """Seconds from there to its first token."""
    inference_time: float = 0.0
    """Seconds from being admitted to its last token: prefill and decode."""
    decode_time: float = 0.0
    """Seconds from its first token to its last."""
    mean_time_per_output_token: float = 0.0
    """``decode_time`` by token after the first; 0 where there is none."""
    num_cached_tokens: int = 0
    """Tokens of its prompt that were in the prefix cache."""


@dataclass(slots=True)
class IterationStats:
    """What one step brought. vLLM: ``IterationStats``."""

    iteration_timestamp: float = 0.0
    """When the step's tokens were here, in seconds since 1970."""
    num_generation_tokens: int = 0
    num_prompt_tokens: int = 0
    """Of the prompts whose first token came, cached tokens included."""
    num_preempted_reqs: int = 0
    """Preemptions since the record before."""
    finished_requests: list[FinishedRequestStats] = field(default_factory=list)
    time_to_first_tokens_iter: list[float] = field(default_factory=list)
    """Seconds from a request's arrival to its first token, for each whose first token came."""
    inter_token_latencies_iter: list[float] = field(default_factory=list)
    """Seconds since a request's last token, for each that got a further one."""
    max_num_generation_tokens_iter: list[int] = field(default_factory=list)
    """For each prompt whose completions have all ended: the tokens of the longest."""
    n_params_iter: list[int] = field(default_factory=list)
    """For the same prompts: ``n``."""

    num_corrupted_reqs: ClassVar[int] = 0
