"""The metric families of ``prometheus``: one set for each registry, with the series of all engines in it."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, TypeAlias

from vllm_ext.errors import Unavailable

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:
    raise Unavailable("it needs prometheus_client; pip install 'vllm-ext[prometheus]'") from error

__all__ = ["FINISH_REASONS", "PREFIX", "REGISTRY", "SLEEP_STATES", "CollectorRegistry", "Families", "Metrics"]

PREFIX = "vllm:"
_KEPT_AS = "_vllm_ext_families"
_LABELS = ("model_name", "engine")
FINISH_REASONS = ("stop", "length", "abort")
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
"""Of which one is 1: the last two are the levels 1 and 2; none of them is, where an engine sleeps at level 0."""

Metrics: TypeAlias = dict[Any, Any]
"""What one engine changes, by the name without the prefix; ``request_success`` by name and finish reason, and
``engine_sleep_state`` by name and state."""


class _Metric(NamedTuple):
    kind: type[Counter] | type[Gauge] | type[Histogram]
    name: str
    text: str
    buckets: tuple[float, ...] = ()


_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 40, 80)
_LONG_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))
_BATCH = tuple(float(2**power) for power in range(15))

_METRICS = (
    _Metric(Gauge, "num_requests_running", "Requests that are being computed."),
    _Metric(Gauge, "num_requests_waiting", "Requests that wait to be computed."),
    _Metric(Gauge, "kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it."),
    _Metric(Counter, "prefix_cache_queries", "Tokens that were looked for in the prefix cache."),
    _Metric(Counter, "prefix_cache_hits", "Tokens that were found in the prefix cache."),
    _Metric(Counter, "num_preemptions", "Requests that gave up their blocks to others."),
    _Metric(Counter, "prompt_tokens", "Tokens of prompts that were read."),
    _Metric(Counter, "generation_tokens", "Tokens that were generated."),
    _Metric(Histogram, "iteration_tokens_total", "Tokens of a step.", _BATCH),
    _Metric(Histogram, "time_to_first_token_seconds", "From arrival to the first token.", _SHORT_S),
    _Metric(Histogram, "inter_token_latency_seconds", "From one token of a request to the next.", _SHORT_S),
    _Metric(Histogram, "request_time_per_output_token_seconds", "The same, as the mean of a request.", _SHORT_S),
    _Metric(Histogram, "e2e_request_latency_seconds", "From arrival to the end.", _LONG_S),
    _Metric(Histogram, "request_queue_time_seconds", "Time in the queue.", _LONG_S),
    _Metric(Histogram, "request_prefill_time_seconds", "From being admitted to the first token.", _LONG_S),
    _Metric(Histogram, "request_inference_time_seconds", "From being admitted to the last token.", _LONG_S),
    _Metric(Histogram, "request_decode_time_seconds", "From the first token to the last.", _LONG_S),
    _Metric(Histogram, "request_prompt_tokens", "Tokens of a request's prompt.", _TOKENS),
    _Metric(Histogram, "request_generation_tokens", "Tokens generated for a request.", _TOKENS),
    _Metric(Histogram, "request_max_num_generation_tokens", "Tokens of a prompt's longest completion.", _TOKENS),
    _Metric(Histogram, "request_params_max_tokens", "The parameter max_tokens of a request.", _TOKENS),
    _Metric(Histogram, "request_params_n", "The parameter n of a request.", (1, 2, 5, 10, 20)),
)


class Families:
    """The families in one registry; made once for it, by :meth:`of`."""

    _lock = threading.Lock()

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        for kind, name, text, buckets in _METRICS:
            options: dict[str, Any] = {"buckets": buckets} if buckets else {}
            self._families[name] = kind(f"{PREFIX}{name}", text, _LABELS, registry=registry, **options)
        self._success = Counter(
            f"{PREFIX}request_success", "Requests that have ended.", (*_LABELS, "finished_reason"), registry=registry
        )
        self._sleep_state = Gauge(
            f"{PREFIX}engine_sleep_state", "1 for how the engine sleeps.", (*_LABELS, "sleep_state"), registry=registry
        )
        names = ("engine", "block_size", "num_gpu_blocks", "enable_prefix_caching")
        self._cache_config = Gauge(f"{PREFIX}cache_config_info", "The KV cache's shape.", names, registry=registry)
        self._taken: set[tuple[str, str]] = set()

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Families:
        """Those of ``registry``, made where they are not there yet. They are kept in it, and so live as long."""
        with cls._lock:
            if (families := vars(registry).get(_KEPT_AS)) is None:
                families = vars(registry)[_KEPT_AS] = cls(registry)
        found: Families = families
        return found

    def reserve(self, model_name: str, engine_index: int) -> str:
        """The label ``engine`` of an engine, from ``engine_index`` on the first that is free."""
        with self._lock:
            while (model_name, str(engine_index)) in self._taken:
                engine_index += 1
            self._taken.add((model_name, str(engine_index)))
        return str(engine_index)

    def release(self, model_name: str, engine: str) -> None:
        """Its engine is gone; what was counted stays. It takes no lock: garbage may be collected while one is held."""
        self._taken.discard((model_name, engine))

    def metrics_of(self, model_name: str, engine: str) -> Metrics:
        """The series of one engine, all of them at 0 where they are new."""
        metrics: Metrics = {name: family.labels(model_name, engine) for name, family in self._families.items()}
        for reason in FINISH_REASONS:
            metrics["request_success", reason] = self._success.labels(model_name, engine, reason)
        for state in SLEEP_STATES:
            metrics["engine_sleep_state", state] = self._sleep_state.labels(model_name, engine, state)
        return metrics

    def publish_cache_config(self, engine: str, shape: dict[str, str]) -> None:
        """Set the series whose labels are the shape to 1."""
        self._cache_config.labels(engine=engine, **shape).set(1)
