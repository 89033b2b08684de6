"""tools/soak.py and tools/bench_parallel.py, as they are called; the figures of the latter are never tested."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import nothing_left
from support.tools import load_tool

TOOLS = Path(__file__).parents[2] / "tools"


def call(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_under_load_and_a_kill_nothing_is_lost(monkeypatch):
    with nothing_left(monkeypatch):
        done = call("soak.py", "--seconds", "8", "--kill-every", "4")

    assert (done.returncode, done.stderr) == (0, "")
    figures = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert "finished" in figures["requests"]
    assert figures["kills"].endswith(" worker")


def test_tokens_that_are_not_the_references_are_found(random_llama):
    soak = load_tool("soak")
    figures = soak.Figures()
    settings = {"dtype": "float32", "platform": "cpu", "kv_cache_memory": 1 << 20}

    async def use() -> None:
        engine = soak.AsyncLLM(random_llama, **settings)
        try:
            load = soak.Load(engine, [([5, 6, 7], [599] * 4)], figures)
            assert await load._one([5, 6, 7], [599] * 4, None) == "finished"
        finally:
            engine.shutdown()

    asyncio.run(use())

    (reason,) = figures.wrong
    assert reason.startswith("other tokens for [5, 6, 7]")


def test_what_grows_from_engine_to_engine_is_found():
    soak = load_tool("soak")
    figures = soak.Figures(left=[(100.0, 10, 2), (110.0, 10, 2), (110.0, 30, 2)])

    soak.check_growth(figures)

    assert figures.wrong == ["descriptors grew by 20 over 3 engines"]


def test_children_of_this_process_are_found():
    soak = load_tool("soak")
    with subprocess.Popen(["sleep", "30"]) as child:
        assert child.pid in soak.own_children()
        child.kill()
    assert child.pid not in soak.own_children()
    assert os.getpid() not in soak.own_children()


@pytest.mark.slow
def test_steps_starts_and_plugins_are_compared():
    small = ["--batches", "2", "--steps", "4", "--repeats", "1", "--workers", "1", "2", "--json"]

    rows = json.loads(call("bench_parallel.py", *small).stdout)

    assert [row["what"] for row in rows] == [
        "step, batch 2: multiproc / uniproc",
        "step, batch 2: core process / core thread",
        "start-up: 1 worker processes / none",
        "start-up: 2 worker processes / none",
        "start-up: each added worker / the first",
        "plugins of a worker / start-up of one",
    ]
    # What a worker adds is a difference, of which one round says nothing.
    assert all(row["base"] > 0 and row["other"] > 0 for row in rows if "added" not in row["what"])
