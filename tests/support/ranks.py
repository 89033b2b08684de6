"""Runs a script of the tests as several processes of one process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from support.device import driven_worker

TESTS = Path(__file__).parent.parent


def run_ranks(script: Path, world_size: int, rendezvous: Path, *args: str, site: Path | None = None) -> None:
    """Run ``script RANK WORLD_SIZE INIT_METHOD ARGS...`` once per rank; all have to succeed. ``site`` has plugins."""
    paths = [TESTS.parent, TESTS, *([] if site is None else [site])]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world_size), f"file://{rendezvous}", *args],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [output for process, output in zip(processes, outputs, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)


def assert_two_ranks_give_the_logits_of_one(model: Path, tmp_path: Path, **settings: str) -> None:
    """For a prompt of 29 tokens and one step more; ``settings`` as in :func:`driven_worker`."""
    given = [f"{name}={value}" for name, value in settings.items()]
    script = TESTS / "distributed" / "ranks_llama.py"
    run_ranks(script, 2, tmp_path / "rendezvous", str(model), str(tmp_path / "logits"), *given)
    with driven_worker(model, **settings) as driver:
        driver.add("r", list(range(1, 30)))
        driver.step({"r": 29})
        prefill = driver.logits
        driver.step({"r": 1})

        for rank in range(2):
            logits = torch.load(tmp_path / f"logits{rank}", weights_only=True)
            torch.testing.assert_close(logits, torch.cat((prefill, driver.logits)), atol=1e-4, rtol=0)
