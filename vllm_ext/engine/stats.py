"""What an engine can say about its load and its cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """How things stand between two steps; counts of events are since the engine started."""

    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    """Requests not admitted yet, and preempted ones."""
    num_preemptions: int = 0
    kv_cache_usage: float = 0.0
    """The share of the KV cache's blocks that requests use, from 0 to 1."""
    prefix_cache_queries: int = 0
    """Tokens of the requests admitted; one that was preempted counts again."""
    prefix_cache_hits: int = 0
    """Those of them that were in the prefix cache."""
