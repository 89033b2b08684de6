"""Engines for the tests of this folder, with the block accounting checked at the end of each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.async_engine import own_threads
from support.core_run import Run
from support.fake_engine import FakeDispatcher, FakeWorker, make_vllm_config
from support.vocabularies import byte_level_tokenizer, write_tokenizer

from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.engine.llm import LLM

OF_DISPATCHER = ("platform", "stat_logger_factories", "clock", "settings", "scheduler")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and lose much where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a byte-level tokenizer and nothing else."""
    return write_tokenizer(tmp_path_factory.mktemp("model"), byte_level_tokenizer())


@pytest.fixture
def engines() -> Iterator[list[LLM]]:
    """Put an LLM in here, and at the end of the test it is closed and its blocks are counted."""
    made: list[LLM] = []
    yield made
    for llm in made:
        llm.llm_engine.engine_core.scheduler.check_integrity()
        llm.close()


@pytest.fixture
def make_llm(model_dir: Path, engines: list[LLM]) -> Callable[..., LLM]:
    """Makes an LLM on the fake worker; keywords are those of ``make_vllm_config`` and of ``FakeDispatcher``."""

    def make(model: Path = model_dir, **options: object) -> LLM:
        own = {name: options.pop(name) for name in ("worker_cls", "prepare", *OF_DISPATCHER) if name in options}
        llm = LLM.from_dispatcher(FakeDispatcher(make_vllm_config(model, **options), **own))
        engines.append(llm)
        return llm

    return make


@pytest.fixture
def make_cpu_llm(engines: list[LLM]) -> Callable[..., LLM]:
    """Makes an LLM on the in-tree CPU platform."""

    def make(model: Path | None, **settings: object) -> LLM:
        llm = LLM(model, dtype="float32", platform="cpu", **settings)
        engines.append(llm)
        return llm

    return make


@pytest.fixture
def make_async_llm(model_dir: Path) -> Iterator[Callable[..., AsyncLLM]]:
    """Makes an engine on the fake worker, which is an attribute of it; at the end no thread is left."""
    made: list[AsyncLLM] = []

    def make(prepare: Callable[[FakeWorker], None] = lambda worker: None, **options: object) -> AsyncLLM:
        own = {name: options.pop(name) for name in ("worker_cls", *OF_DISPATCHER) if name in options}
        dispatcher = FakeDispatcher(make_vllm_config(model_dir, **options), prepare=prepare, **own)
        engine = AsyncLLM.from_dispatcher(dispatcher)
        engine.worker = dispatcher.worker
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.shutdown()
        assert engine.worker.calls.count("shutdown") == 1
    assert own_threads() == []


@pytest.fixture
def run(request) -> Iterator[Run]:
    made = Run(**getattr(request, "param", {}))
    yield made
    made.finish()
    assert made.worker.requests == {}
    assert made.scheduler.kv_cache_manager.block_pool.num_free_blocks == made.core.kv_cache_config.num_blocks
    made.core.shutdown()
