"""``AsyncLLM`` with its engine core in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from support.async_engine import greedy, tokens_of
from support.processes import marked_processes, nothing_left

from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.engine.llm import LLM
from vllm_ext.errors import EngineError


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with nothing_left(monkeypatch) as made:
        yield made


@pytest.fixture
def engine(mark, random_llama, request) -> Iterator[AsyncLLM]:
    settings = {"kv_cache_memory": 1 << 20, "core_process": True} | getattr(request, "param", {})
    made = AsyncLLM(random_llama, dtype="float32", platform="cpu", **settings)
    yield made
    made.shutdown()


MULTIPROC = {"executor": "multiproc", "tensor_parallel_size": 2}


@pytest.mark.parametrize("engine", [{}, MULTIPROC], indirect=True, ids=["uniproc", "multiproc"])
def test_the_tokens_are_those_of_a_core_in_this_process(engine, random_llama):
    with LLM(random_llama, dtype="float32", platform="cpu") as llm:
        (expected,) = llm.generate([5, 6, 7], greedy(8))

    assert asyncio.run(tokens_of(engine, [5, 6, 7], greedy(8))) == expected.outputs[0].token_ids


@pytest.mark.parametrize("engine", [MULTIPROC], indirect=True)
def test_every_process_proves_what_it_runs(engine, mark):
    here, *others = engine.receipts

    assert [receipt.name for receipt in (here, *others)] == ["front end", "engine core", "worker 0", "worker 1"]
    assert here.pid == os.getpid()
    assert {receipt.pid for receipt in others} == set(marked_processes(mark))
    assert {receipt.fingerprint for receipt in others} == {here.fingerprint}


def test_a_core_that_is_killed_ends_its_requests_with_the_reason(engine):
    async def use() -> None:
        stream = engine.generate([5, 6, 7], greedy(200))
        await anext(stream)
        os.kill(engine.receipts[1].pid, signal.SIGKILL)
        async for _ in stream:
            continue

    with pytest.raises(EngineError, match=r"the engine core \(PID \d+\) was killed by SIGKILL"):
        asyncio.run(use())


def test_a_function_that_the_core_cannot_import_is_said_and_the_engine_goes_on(engine):
    async def use() -> list[int]:
        with pytest.raises(EngineError, match=r"a value of another process that it cannot make"):
            await engine.collective_rpc(of_this_module)
        return await tokens_of(engine, [5, 6, 7], greedy(3))

    assert len(asyncio.run(use())) == 3


def of_this_module(worker):
    """The tests' folders are no packages, so that no other process finds it."""


@pytest.mark.parametrize("engine", [MULTIPROC], indirect=True)
def test_a_worker_that_is_killed_ends_the_requests_with_its_rank(engine):
    async def use() -> None:
        stream = engine.generate([5, 6, 7], greedy(200))
        await anext(stream)
        os.kill(engine.receipts[3].pid, signal.SIGKILL)
        async for _ in stream:
            continue

    with pytest.raises(EngineError, match=r"worker 1 \(PID \d+\).* was killed by SIGKILL"):
        asyncio.run(use())
