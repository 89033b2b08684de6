"""Engines with worker processes on small random models; after each test no process may be left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import nothing_left

from vllm_ext.engine.llm import LLM


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the processes that the test starts."""
    with nothing_left(monkeypatch) as made:
        yield made


@pytest.fixture
def make_multiproc_llm(mark: str, random_llama: Path) -> Iterator[Callable[..., LLM]]:
    """Makes an LLM of two workers on the in-tree CPU platform; keywords are settings of ``engine``."""
    made: list[LLM] = []

    def make(model: Path = random_llama, *, tensor_parallel_size: int = 2, **settings: object) -> LLM:
        options = {"dtype": "float32", "platform": "cpu", "max_num_seqs": 8, "kv_cache_memory": 1 << 20}
        size = {"executor": "multiproc", "tensor_parallel_size": tensor_parallel_size}
        llm = LLM(model, **(options | size | settings))
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()
