#!/usr/bin/env python3
"""Time what stat loggers cost a decode step: an engine without one, with one that does nothing, with all in-tree ones.

    python tools/bench_stats.py --batch 1 16

One process, one thread for torch, the model in the box, and the engines in turn in each repeat. Printed as JSON by
batch: the median of a step in microseconds without a logger, and ratios to it of the others, each as the median of the
ratios within a repeat.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from vllm_ext import LLM, SamplingParams, StatLoggerBase


class Nothing(StatLoggerBase):
    """Takes everything and does nothing."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None: ...

    def log_engine_initialized(self) -> None: ...


def make_engines(max_num_seqs: int, path: str) -> dict[str, LLM]:
    """By what they are told to."""
    make = functools.partial(LLM, dtype="float32", platform="cpu", max_num_seqs=max_num_seqs)
    none = {"plugins.stat_logger.enabled": []}
    in_tree = {"plugins.stat_logger.enabled": ["logging", "prometheus", "jsonl"], "options": {"jsonl": {"path": path}}}
    return {
        "none": make(overrides=none),
        "nothing": make(overrides=none, stat_loggers=[Nothing]),
        "in-tree": make(overrides=in_tree),
    }


def step_seconds(llm: LLM, batch: int, num_tokens: int) -> float:
    """Mean seconds of a decode step of ``batch`` requests."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    prompts = [[5 + number, 6, 7] for number in range(batch)]
    engine = llm.llm_engine
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params, final_only=True)
    # The prompts.
    engine.step()
    num_steps = 0
    start = time.perf_counter()
    while engine.has_unfinished_requests():
        engine.step()
        num_steps += 1
    return (time.perf_counter() - start) / num_steps


def measure(batches: Sequence[int], num_tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """By batch: microseconds of a step without a logger, and the others' ratios."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engines = make_engines(max(batches), f"{folder}/stats.jsonl")
        for batch in batches:
            seconds: dict[str, list[float]] = {name: [] for name in engines}
            for _ in range(repeats + 1):
                for name, llm in engines.items():
                    seconds[name].append(step_seconds(llm, batch, num_tokens))
            # The first of each is not counted: memory is touched for the first time.
            base = seconds.pop("none")[1:]
            found[str(batch)] = {"none_us": round(1e6 * statistics.median(base), 1)} | {
                name: round(statistics.median(t / b for t, b in zip(times[1:], base, strict=True)), 3)
                for name, times in seconds.items()
            }
        for llm in engines.values():
            llm.close()
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time what stat loggers cost a decode step.")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="requests at once")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each request")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(json.dumps(measure(arguments.batch, arguments.tokens, arguments.repeats), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
