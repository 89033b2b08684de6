"""Engines with worker processes on small random models; after each test no process of its own may be left."""

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


def _multiproc_llm(model: Path, *, tensor_parallel_size: int = 2, **settings: object) -> LLM:
    options = {"dtype": "float32", "platform": "cpu", "max_num_seqs": 8, "kv_cache_memory": 1 << 20}
    size = {"executor": "multiproc", "tensor_parallel_size": tensor_parallel_size}
    return LLM(model, **(options | size | settings))


@pytest.fixture
def make_multiproc_llm(mark: str, random_llama: Path) -> Iterator[Callable[..., LLM]]:
    """Makes an LLM of two workers on the in-tree CPU platform; keywords are settings of ``engine``."""
    made: list[LLM] = []

    def make(model: Path = random_llama, **settings: object) -> LLM:
        llm = _multiproc_llm(model, **settings)
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()


@pytest.fixture(scope="module")
def marked_llm(random_llama: Path) -> Iterator[tuple[LLM, str]]:
    """An LLM of two workers for all tests that leave it as it was, and the mark of its processes."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        nothing_left(monkeypatch) as mark,
        _multiproc_llm(random_llama) as llm,
    ):
        yield llm, mark


@pytest.fixture
def multiproc_llm(marked_llm: tuple[LLM, str]) -> LLM:
    return marked_llm[0]
