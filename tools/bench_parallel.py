#!/usr/bin/env python3
"""What processes cost: a step, a start, and the loading of plugins, against the same in one process.

    python tools/bench_parallel.py [MODEL_DIR] [--batches 1 16] [--steps 60] [--repeats 5] [--workers 1 2 4] [--json]

Engines that are compared stand side by side and take turns in rounds; medians over the rounds are shown. Without
MODEL_DIR it is the model that comes with vllm_ext, whose steps are short, so that what a message costs shows. Each
engine computes with one thread, since workers divide the threads of the machine among them.

A step is one decoded token for each request of the batch. Start-up is from nothing to an engine that can serve, in the
process that measures, where torch has been imported: an added worker is a new Python that imports it anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from vllm_ext import LLM, AsyncLLM, SamplingParams

COMMON: dict[str, Any] = {"dtype": "float32", "platform": "cpu", "kv_cache_memory": 64 << 20, "max_num_seqs": 64}
ONE_PROCESS = {"executor": "uniproc"}
WORKER_PROCESS = {"executor": "multiproc"}
PROMPT = list(range(5, 13))


def decode_seconds(llm: LLM, batch: int, steps: int) -> float:
    """Seconds of a decode step: prompts of one length, so that every step has one token of each request."""
    params = SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True)
    times: list[float] = []
    last = time.perf_counter()
    for number, _ in enumerate(llm.stream([PROMPT] * batch, params), 1):
        if number % batch == 0:
            now = time.perf_counter()
            times.append(now - last)
            last = now
    # The first is the prompts', the last is cut short.
    return statistics.median(times[1:-1])


async def _async_seconds(engine: AsyncLLM, batch: int, steps: int) -> float:
    """Seconds of a step as the readers of all requests see it."""
    params = SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True)

    async def read() -> float:
        stream = engine.generate(PROMPT, params)
        await anext(stream)
        started = time.perf_counter()
        async for _ in stream:
            continue
        return (time.perf_counter() - started) / steps

    return max(await asyncio.gather(*(read() for _ in range(batch))))


def in_turn(calls: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """Medians of several measurements that take turns."""
    rounds = [[call() for call in calls] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def step_rows(model: str | None, batches: list[int], steps: int, repeats: int) -> list[dict[str, Any]]:
    """A step of each executor, then of each kind of core behind AsyncLLM."""
    rows = []
    with LLM(model, **COMMON, **ONE_PROCESS) as one, LLM(model, **COMMON, **WORKER_PROCESS) as other:
        for batch in batches:
            calls = [lambda llm=llm, batch=batch: decode_seconds(llm, batch, steps) for llm in (one, other)]
            rows.append(_row(f"step, batch {batch}: multiproc / uniproc", *in_turn(calls, repeats), 1e6, "us"))
    rows += asyncio.run(_async_rows(model, batches, steps, repeats))
    return rows


async def _async_rows(model: str | None, batches: list[int], steps: int, repeats: int) -> list[dict[str, Any]]:
    rows = []
    engines = [AsyncLLM(model, **COMMON, core_process=process) for process in (False, True)]
    try:
        for batch in batches:
            rounds = [[await _async_seconds(engine, batch, steps) for engine in engines] for _ in range(repeats)]
            medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
            rows.append(_row(f"step, batch {batch}: core process / core thread", *medians, 1e6, "us"))
    finally:
        for engine in engines:
            engine.shutdown()
    return rows


def start_rows(model: str | None, workers: list[int], repeats: int) -> list[dict[str, Any]]:
    """Start-up by number of worker processes, against none; and the plugins' share of it."""
    plugins: list[float] = []

    def start(settings: dict[str, Any]) -> float:
        started = time.perf_counter()
        with closing(LLM(model, **COMMON, **settings)) as llm:
            ready = time.perf_counter() - started
            plugins.extend(receipt.seconds for receipt in llm.receipts[1:])
        return ready

    settings = [ONE_PROCESS, *({**WORKER_PROCESS, "tensor_parallel_size": number} for number in workers)]
    one, *several = in_turn([lambda each=each: start(each) for each in settings], repeats)
    rows = [
        _row(f"start-up: {number} worker processes / none", one, seconds, 1e3, "ms")
        for number, seconds in zip(workers, several, strict=True)
    ]
    if len(workers) > 1:
        added = (several[-1] - several[0]) / (workers[-1] - workers[0])
        rows.append(_row("start-up: each added worker / the first", several[0], added, 1e3, "ms"))
    rows.append(_row("plugins of a worker / start-up of one", several[0], statistics.median(plugins), 1e3, "ms"))
    return rows


def _row(what: str, base: float, other: float, scale: float, unit: str) -> dict[str, Any]:
    return {"what": what, "base": base * scale, "other": other * scale, "unit": unit, "ratio": other / base}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = None if args.model is None else str(args.model)
    rows = step_rows(model, args.batches, args.steps, args.repeats)
    rows += start_rows(model, args.workers, max(1, args.repeats // 2))
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['what']:<45} {row['other']:9.0f} / {row['base']:9.0f} {row['unit']}  = {row['ratio']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
