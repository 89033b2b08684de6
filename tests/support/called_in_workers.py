"""Functions that tests have workers call, in processes that cannot import the tests themselves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.faulty_workers import NeedsMore

from vllm_ext.contracts.worker import WorkerBase


def function_of_no_file(monkeypatch: pytest.MonkeyPatch) -> Callable[[WorkerBase], None]:
    """One that this process alone can import, whatever is on the path."""
    module = ModuleType("module_of_no_file")
    exec("def function(worker): pass", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    function: Callable[[WorkerBase], None] = module.function
    return function


def rank_and_sum(worker: WorkerBase, a: int, *, b: int) -> tuple[int, int]:
    return worker.rank, a + b


def num_threads_at_start(worker: WorkerBase) -> str | None:
    """What the process was started with; hooks run in it, too."""
    environ = Path("/proc/self/environ").read_bytes().split(b"\0")
    return next((line[16:].decode() for line in environ if line.startswith(b"OMP_NUM_THREADS=")), None)


def late_and_large(worker: WorkerBase, file: str, num_bytes: int) -> torch.Tensor:
    """It comes once the file is there."""
    while not Path(file).exists():
        time.sleep(0.01)
    return torch.zeros(num_bytes, dtype=torch.uint8)


def num_bytes_of(worker: WorkerBase, tensor: torch.Tensor) -> int:
    return tensor.nbytes


def needs_more(worker: WorkerBase) -> NeedsMore:
    """It cannot be made of what passes between processes."""
    return NeedsMore(1, 2)


def forget_traffic(worker: WorkerBase) -> None:
    """The dummy platform's counters start anew."""
    from vllm_ext_dummy_platform import calls, carried

    calls.clear()
    carried.clear()


def traffic(worker: WorkerBase) -> dict[str, tuple[int, int]]:
    """By collective of the dummy platform's communicator: calls, and bytes that this rank gave."""
    from vllm_ext_dummy_platform import calls, carried

    return {name: (calls[name], count) for name, count in carried.items()}


def kv_heads(worker: WorkerBase) -> list[int]:
    """KV heads of each layer on this rank."""
    specs: dict[str, Any] = worker.get_kv_cache_spec()
    return [spec.num_kv_heads for spec in specs.values()]
