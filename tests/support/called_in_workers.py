"""Functions that tests have workers call, in processes that cannot import the tests themselves."""

from __future__ import annotations

from vllm_ext.contracts.worker import WorkerBase


def rank_and_sum(worker: WorkerBase, a: int, *, b: int) -> tuple[int, int]:
    return worker.rank, a + b
