"""Runs a script of the tests as several processes of one process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
