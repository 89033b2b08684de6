#!/usr/bin/env python3
"""An engine under load for minutes: random requests, readers that go away, and worker processes that are killed.

    python tools/soak.py [--seconds 120] [--seed 0] [--workers 2] [--core-process] [--kill-every 15]

The model is small and random, made on the spot. All along it is checked that

- every request ends: finished, with the tokens of an undisturbed engine; aborted by its reader; or with an EngineError
  that names a worker or the core;
- blocks are accounted for whenever the engine is idle, before each kill that is planned;
- memory, descriptors, threads and processes do not grow from one engine to the next.

Figures are printed at the end. Exit code 1, with the reasons, where something was not as it has to be.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import make_checkpoint

from vllm_ext import LLM, AsyncLLM, SamplingParams
from vllm_ext.errors import EngineError

SHAPE = make_checkpoint.Shape(
    hidden_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    vocab_size=600,
    max_position_embeddings=256,
)
NUM_PROMPTS, NUM_READERS, MAX_TOKENS = 40, 12, 60
ABORTED = 0.2
"""Share of the requests whose reader goes away."""
GROWTH_MB, GROWTH_DESCRIPTORS, GROWTH_THREADS = 40.0, 8, 4
"""What an engine may leave behind in all, after the first: allocators keep some, and a pool of threads stays."""


@dataclass
class Figures:
    """What happened, and what was wrong."""

    requests: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    restart_seconds: list[float] = field(default_factory=list)
    left: list[tuple[float, int, int]] = field(default_factory=list)
    """After each engine: MB in memory, descriptors, threads."""
    wrong: list[str] = field(default_factory=list)


class Load:
    """Readers of one engine, until it is told to end, or the engine does."""

    def __init__(self, engine: AsyncLLM, cases: list[tuple[list[int], list[int]]], figures: Figures) -> None:
        self._engine, self._cases, self._figures = engine, cases, figures
        self._stop = False

    async def run(self, seconds: float, rng: random.Random) -> None:
        """Let all read for that long, then come to rest."""
        readers = [asyncio.create_task(self._read(random.Random(rng.random()))) for _ in range(NUM_READERS)]
        await asyncio.sleep(seconds)
        self._stop = True
        await asyncio.gather(*readers)

    async def _read(self, rng: random.Random) -> None:
        while not self._stop:
            prompt, expected = rng.choice(self._cases)
            wanted = rng.randint(1, len(expected))
            leaves_at = rng.randint(1, wanted) if rng.random() < ABORTED else None
            try:
                self._note(await self._one(prompt, expected[:wanted], leaves_at))
            except EngineError as error:
                self._note("failed")
                if "worker" not in str(error) and "core" not in str(error):
                    self._figures.wrong.append(f"an error that names nobody: {error}")
                if not self._engine.is_running:
                    return

    async def _one(self, prompt: list[int], expected: list[int], leaves_at: int | None) -> str:
        """How one request ended."""
        params = SamplingParams(temperature=0, max_tokens=len(expected), ignore_eos=True)
        stream = self._engine.generate(prompt, params)
        token_ids: list[int] = []
        is_finished = False
        async for output in stream:
            token_ids, is_finished = output.outputs[0].token_ids, output.finished
            if leaves_at is not None and len(token_ids) >= leaves_at and not is_finished:
                await stream.aclose()  # type: ignore[attr-defined]
                return "aborted"
        self._figures.tokens += len(token_ids)
        if not is_finished:
            self._figures.wrong.append(f"a request of {len(prompt)} tokens was lost without an error")
        if token_ids != expected:
            self._figures.wrong.append(f"other tokens for {prompt[:3]}...: {token_ids} instead of {expected}")
        return "finished"

    def _note(self, how: str) -> None:
        self._figures.requests[how] += 1


async def soak(model: Path, args: argparse.Namespace, figures: Figures) -> None:
    """Engine after engine, each until a process of it is killed."""
    rng = random.Random(args.seed)
    cases = references(model, rng)
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        started = time.monotonic()
        engine = AsyncLLM(str(model), **settings(args))
        figures.restart_seconds.append(time.monotonic() - started)
        # The first start, from a cold disk, is no part of the time.
        deadline = deadline or time.monotonic() + args.seconds
        load = Load(engine, cases, figures)
        try:
            remaining = max(0.0, deadline - time.monotonic())
            await load.run(min(remaining, rng.uniform(0.2, 0.6) * args.kill_every), rng)
            await check_books(engine, figures)
            if deadline - time.monotonic() > 0:
                await killed(engine, cases, figures, rng, args.kill_every)
        finally:
            engine.shutdown()
        figures.left.append(resources())
        if children := own_children():
            figures.wrong.append(f"processes were left by an engine: {children}")


async def killed(
    engine: AsyncLLM, cases: list[tuple[list[int], list[int]]], figures: Figures, rng: random.Random, within: float
) -> None:
    """Kill a process of the engine while requests are in flight; all of them have to end."""
    victim = rng.choice(engine.receipts[1:])
    running = asyncio.create_task(Load(engine, cases, figures).run(0.4 * within, rng))
    await asyncio.sleep(rng.uniform(0.05, 0.3) * within)
    os.kill(victim.pid, signal.SIGKILL)
    figures.kills[victim.process] += 1
    await asyncio.wait_for(running, within + 30)
    if engine.is_running:
        figures.wrong.append(f"the engine runs on though its {victim.name} was killed")


async def check_books(engine: AsyncLLM, figures: Figures) -> None:
    """At rest no block is in use, and the scheduler's books agree."""
    try:
        await engine._core.call("check_integrity")
        stats = await engine.get_stats()
    except EngineError as error:
        figures.wrong.append(f"the books do not agree: {error}")
        return
    if (stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage) != (0, 0, 0.0):
        figures.wrong.append(f"at rest there is something in flight: {stats}")


def references(model: Path, rng: random.Random) -> list[tuple[list[int], list[int]]]:
    """Prompts, half of which begin alike, and what an undisturbed engine continues each with."""
    shared = [rng.randrange(3, SHAPE.vocab_size) for _ in range(40)]
    prompts = [
        [*(shared[: rng.randint(0, 40)] if rng.random() < 0.5 else []), *(rng.randrange(3, 600) for _ in range(length))]
        for length in (rng.randint(1, 100) for _ in range(NUM_PROMPTS))
    ]
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    with LLM(str(model), dtype="float32", platform="cpu") as llm:
        outputs = llm.generate(prompts, params)
    return [(prompt, output.outputs[0].token_ids) for prompt, output in zip(prompts, outputs, strict=True)]


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Of the engine under load: a cache that is too small for all requests, so that some are preempted."""
    return {
        "dtype": "float32",
        "platform": "cpu",
        "executor": "multiproc",
        "tensor_parallel_size": args.workers,
        "core_process": args.core_process,
        "kv_cache_memory": 400_000 // args.workers,
        "max_num_batched_tokens": 64,
    }


def resources() -> tuple[float, int, int]:
    """Of this process: MB in memory, descriptors, threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return megabytes, len(os.listdir("/proc/self/fd")), threading.active_count()


def own_children() -> list[int]:
    """PIDs of processes that this one started and that are still there."""
    tasks = Path("/proc/self/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def check_growth(figures: Figures) -> None:
    """What was left after the second engine and after the last; the first fills pools and caches."""
    if len(figures.left) < 3:
        return
    (first_mb, first_fds, first_threads), (mb, fds, threads) = figures.left[1], figures.left[-1]
    limits = (
        ("memory in MB", mb - first_mb, GROWTH_MB),
        ("descriptors", fds - first_fds, GROWTH_DESCRIPTORS),
        ("threads", threads - first_threads, GROWTH_THREADS),
    )
    figures.wrong += [
        f"{what} grew by {by:.0f} over {len(figures.left)} engines" for what, by, most in limits if by > most
    ]


def show(figures: Figures, seconds: float) -> None:
    """The figures, a line each."""
    kinds = ", ".join(f"{number} {how}" for how, number in sorted(figures.requests.items()))
    print(f"requests          {figures.requests.total()} in {seconds:.0f} s: {kinds}")
    print(f"tokens            {figures.tokens}")
    print(f"kills             {', '.join(f'{n} {who}' for who, n in sorted(figures.kills.items())) or 'none'}")
    print(
        f"starts            {len(figures.restart_seconds)}, median {statistics.median(figures.restart_seconds):.1f} s"
    )
    for what, index in (("memory, MB", 0), ("descriptors", 1), ("threads", 2)):
        print(f"{what:<17} {' '.join(f'{each[index]:.0f}' for each in figures.left)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--core-process", action="store_true")
    parser.add_argument("--kill-every", type=float, default=15.0, metavar="S", help="seconds between two kills, about")
    args = parser.parse_args()
    # Workers are killed on purpose, and that requests end with the reason is among the figures.
    logging.getLogger("vllm_ext").setLevel(logging.CRITICAL)
    figures = Figures()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        make_checkpoint.write_checkpoint(model, SHAPE, seed=args.seed)
        asyncio.run(soak(model, args, figures))
    check_growth(figures)
    show(figures, time.monotonic() - started)
    for reason in figures.wrong:
        print(f"wrong: {reason}", file=sys.stderr)
    return 1 if figures.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
