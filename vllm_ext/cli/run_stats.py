"""What ``vllm-ext run --stats`` adds up while the engine runs, and how it is shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from vllm_ext.contracts.stat_logger import StatLoggerBase
from vllm_ext.contracts.stats import IterationStats, SchedulerStats

_NUM_BARS = 8
_WIDTH = 40
"""Characters of the longest bar."""


class RunStats(StatLoggerBase):
    """A stat logger that keeps everything in memory until it is asked. Durations are in seconds."""

    def __init__(self, *_: Any) -> None:
        self.finished: Counter[str] = Counter()
        """Requests by why they ended."""
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_preemptions = 0
        self.num_queries = 0
        self.num_hits = 0
        self.first_token_s: list[float] = []
        self.inter_token_s: list[float] = []
        self.end_to_end_s: list[float] = []

    def log_engine_initialized(self) -> None:
        """Nothing to do."""

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add a step."""
        if scheduler_stats is not None:
            self.num_queries += scheduler_stats.prefix_cache_stats.queries
            self.num_hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.num_prompt_tokens += iteration_stats.num_prompt_tokens
            self.num_generation_tokens += iteration_stats.num_generation_tokens
            self.num_preemptions += iteration_stats.num_preempted_reqs
            self.first_token_s += iteration_stats.time_to_first_tokens_iter
            self.inter_token_s += iteration_stats.inter_token_latencies_iter
            self.end_to_end_s += [finished.e2e_latency for finished in iteration_stats.finished_requests]
            self.finished.update(finished.finish_reason for finished in iteration_stats.finished_requests)

    def lines(self, seconds: float) -> Iterator[str]:
        """The summary of a run that took ``seconds``."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.finished.items()))
        yield f"requests             {self.finished.total()} ({reasons or 'none'})"
        yield f"prompt tokens        {self.num_prompt_tokens}, of {self.num_queries} looked for {self.num_hits} cached"
        rate = self.num_generation_tokens / seconds if seconds > 0 else 0.0
        yield f"generated tokens     {self.num_generation_tokens} in {seconds:.2f} s, {rate:.1f} tokens/s"
        yield f"preemptions          {self.num_preemptions}"
        yield f"{'':19}{'median':>12}{'95th percentile':>18}"
        for name, values in (
            ("time to first token", self.first_token_s),
            ("inter-token latency", self.inter_token_s),
            ("end to end", self.end_to_end_s),
        ):
            middle, high = (_milliseconds(percentile(values, share)) for share in (0.5, 0.95))
            yield f"{name:19}{middle:>12}{high:>18}"
        if self.inter_token_s:
            yield "inter-token latencies:"
            yield from histogram(self.inter_token_s)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which this share of ``values`` lies, between two of them in proportion; ``None`` of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def histogram(values: Sequence[float]) -> Iterator[str]:
    """A line for each of a few ranges of equal ratio, from the least of ``values`` (seconds) to the greatest."""
    # A clock may stand still between two tokens; a logarithm needs something.
    least, greatest = (max(value, 1e-6) for value in (min(values), max(values)))
    ratio = (greatest / least) ** (1 / _NUM_BARS)
    num_bars = _NUM_BARS if ratio > 1 else 1
    counts = [0] * num_bars
    for value in values:
        index = int(math.log(max(value, least) / least) / math.log(ratio)) if ratio > 1 else 0
        counts[min(index, num_bars - 1)] += 1
    for index, count in enumerate(counts):
        start, end = (_milliseconds(least * ratio ** (index + offset)) for offset in (0, 1))
        bar = "#" * math.ceil(_WIDTH * count / max(counts))
        yield f"{start:>12} - {end:>10}  {bar:{_WIDTH}}  {count}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f} ms"
