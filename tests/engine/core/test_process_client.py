"""``AsyncLLM`` with its engine core in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.async_engine import HANG_S, greedy, tokens_of
from support.called_in_workers import function_of_no_file
from support.faulty_workers import NeedsMore
from support.hook_platform import install_platform
from support.processes import marked_processes, nothing_left, wait_until

from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.take_over import make_hand_over
from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.engine.core import process_client
from vllm_ext.engine.core.messages import AbortRequests
from vllm_ext.engine.core.process_messages import Kind
from vllm_ext.engine.llm import LLM
from vllm_ext.engine.processes.channel import Frame
from vllm_ext.errors import EngineError, PlanMismatch
from vllm_ext.plan import HandOver


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with nothing_left(monkeypatch) as made:
        yield made


def core_process_engine(model: Path, **settings: Any) -> AsyncLLM:
    return AsyncLLM(model, dtype="float32", platform="cpu", kv_cache_memory=1 << 20, core_process=True, **settings)


@pytest.fixture
def engine(mark, random_llama, request) -> Iterator[AsyncLLM]:
    made = core_process_engine(random_llama, **getattr(request, "param", {}))
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def marked_engine(random_llama) -> Iterator[tuple[AsyncLLM, str]]:
    """An engine of two workers for all tests that leave it as it was, and the mark of its processes."""
    with pytest.MonkeyPatch.context() as monkeypatch, nothing_left(monkeypatch) as made:
        shared = core_process_engine(random_llama, **MULTIPROC)
        yield shared, made
        shared.shutdown()


@pytest.fixture
def shared_engine(marked_engine) -> AsyncLLM:
    return marked_engine[0]


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Any]]:
    """Runs a coroutine in the event loop of ``shared_engine``, which is used in no other."""
    with asyncio.Runner() as runner:
        yield runner.run


MULTIPROC = {"executor": "multiproc", "tensor_parallel_size": 2}
HANGS = {"overrides": {"worker.cls": "support.faulty_workers.HangsInItsThirdStep"}}


def expected_tokens(model: Path) -> list[int]:
    with LLM(model, dtype="float32", platform="cpu") as llm:
        return llm.generate([5, 6, 7], greedy(8))[0].outputs[0].token_ids


def test_the_tokens_are_those_of_a_core_in_this_process(shared_engine, run, random_llama):
    assert run(tokens_of(shared_engine, [5, 6, 7], greedy(8))) == expected_tokens(random_llama)


@pytest.mark.slow
def test_the_tokens_of_a_worker_in_the_core_process_are_the_same(engine, random_llama):
    assert asyncio.run(tokens_of(engine, [5, 6, 7], greedy(8))) == expected_tokens(random_llama)


def test_every_process_proves_what_it_runs(marked_engine):
    engine, mark = marked_engine
    here, *others = engine.receipts

    assert [receipt.name for receipt in (here, *others)] == ["front end", "engine core", "worker 0", "worker 1"]
    assert here.pid == os.getpid()
    assert {receipt.pid for receipt in others} == set(marked_processes(mark))
    assert {receipt.fingerprint for receipt in others} == {here.fingerprint}


@pytest.mark.slow
def test_a_core_whose_platform_configures_it_otherwise_than_the_front_end_is_refused(mark, random_llama, plugins):
    hook = f"vllm_config.model_config.seed = 1 if os.getpid() == {os.getpid()} else 2"
    install_platform(plugins, hook)

    with pytest.raises(PlanMismatch, match=r"engine core would not run .*\n +engine +engine core\n +\S+seed +1 +2\n"):
        AsyncLLM(random_llama, platform="npu", kv_cache_memory=1 << 20, core_process=True)


@pytest.mark.parametrize("engine", [HANGS], indirect=True, ids=[""])
def test_a_core_that_is_killed_ends_its_requests_with_the_reason(engine):
    async def use() -> None:
        stream = engine.generate([5, 6, 7], greedy(200))
        await anext(stream)
        os.kill(engine.receipts[1].pid, signal.SIGKILL)
        async for _ in stream:
            continue

    with pytest.raises(EngineError, match=r"the engine core \(PID \d+\) was killed by SIGKILL"):
        asyncio.run(use())


def test_a_core_that_is_killed_before_it_has_the_plan_ends_the_start_with_the_reason(mark, random_llama, monkeypatch):
    def after_its_end(dispatcher: Dispatcher) -> HandOver:
        # What a new process was started with can be read a moment after its start.
        assert wait_until(lambda: marked_processes(mark))
        for pid in marked_processes(mark):
            os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not marked_processes(mark))
        return make_hand_over(dispatcher)

    monkeypatch.setattr(process_client, "make_hand_over", after_its_end)

    with pytest.raises(EngineError, match=r"the engine core \(PID \d+\) was killed by SIGKILL while it started"):
        AsyncLLM(random_llama, dtype="float32", platform="cpu", core_process=True)


@pytest.mark.slow
def test_a_core_that_reads_nothing_any_more_is_ended_all_the_same(engine, monkeypatch):
    monkeypatch.setattr(process_client, "_GRACE_S", 0.5)
    client, pid = engine._core._client, engine.receipts[1].pid
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    # More than waits for it in between.
    sender = threading.Thread(target=client.send, args=(AbortRequests(["nobody's"] * 1_000_000),), daemon=True)
    sender.start()
    assert wait_until(client._process.channel._sending.locked)

    engine.shutdown()

    assert not client.is_alive
    sender.join()


def test_a_function_that_the_core_cannot_import_is_said_and_the_engine_goes_on(shared_engine, run, monkeypatch):
    async def use() -> list[int]:
        with pytest.raises(EngineError, match=r"a value of another process that it cannot make"):
            await shared_engine.collective_rpc(function_of_no_file(monkeypatch))
        return await tokens_of(shared_engine, [5, 6, 7], greedy(3))

    assert len(run(use())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("engine", [MULTIPROC | HANGS], indirect=True, ids=[""])
def test_a_worker_that_is_killed_ends_the_requests_with_its_rank(engine):
    async def use() -> None:
        stream = engine.generate([5, 6, 7], greedy(200))
        await anext(stream)
        os.kill(engine.receipts[3].pid, signal.SIGKILL)
        async for _ in stream:
            continue

    with pytest.raises(EngineError, match=r"worker 1 \(PID \d+\).* was killed by SIGKILL"):
        asyncio.run(use())


def test_a_call_that_the_core_cannot_read_is_answered_and_the_engine_goes_on(shared_engine, run):
    async def use() -> None:
        for value in ("\ud800", NeedsMore(1, 2)):
            with pytest.raises(EngineError, match="cannot pass to another process|that it cannot make"):
                await shared_engine.collective_rpc("check_health", args=(value,))
        assert len(await tokens_of(shared_engine, [5, 6, 7], greedy(3))) == 3

    run(use())


@pytest.mark.slow
def test_a_message_that_nobody_can_read_ends_the_engine_and_everybody_hears_of_it(engine):
    async def use() -> None:
        stream = engine.generate([5, 6, 7], greedy(200))
        await anext(stream)
        engine._core._client._process.channel.send(Frame(Kind.MESSAGE, b"\xc1"))
        # The core may have made all tokens of one before it reads that.
        while True:
            async for _ in stream:
                continue
            stream = engine.generate([5, 6, 7], greedy(200))

    with pytest.raises(EngineError, match="the engine core stopped"):
        asyncio.run(asyncio.wait_for(use(), HANG_S))


@pytest.mark.parametrize(
    "settings",
    [
        {"core_process": True},
        *(pytest.param(each, marks=pytest.mark.slow) for each in (MULTIPROC, {"core_process": True} | MULTIPROC)),
    ],
)
def test_a_worker_that_cannot_say_what_it_can_do_ends_the_start_with_the_reason(mark, random_llama, settings):
    overrides = {"worker.cls": "support.faulty_workers.KnowsNothing"}

    message = r"worker .*KnowsNothing of platform 'cpu' failed|worker \d .*get_supported_sampling_params"
    with pytest.raises(EngineError, match=message):
        AsyncLLM(random_llama, platform="cpu", kv_cache_memory=1 << 20, overrides=overrides, **settings)


@pytest.mark.parametrize(
    "kind", ["thread", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("core process", "uniproc"))]
)
def test_a_forked_copy_ends_by_itself_and_leaves_the_engine_alone(random_llama, kind):
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(random_llama), kind], capture_output=True, text=True, timeout=300, check=False
    )

    assert (done.returncode, done.stdout) == (0, "0\n3 tokens\n"), done.stderr


FORKS = """
import asyncio, os, sys
from vllm_ext import AsyncLLM, LLM, SamplingParams
def main():
    settings = dict(dtype="float32", platform="cpu", kv_cache_memory=1 << 20)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    if sys.argv[2] == "uniproc":
        engine = LLM(sys.argv[1], **settings)
    else:
        engine = AsyncLLM(sys.argv[1], core_process=sys.argv[2] == "core process", **settings)
    if not (child := os.fork()):
        sys.exit(0)
    print(os.waitpid(child, 0)[1])
    async def last():
        async for output in engine.generate([5, 6, 7], params):
            found = output
        return found
    output = engine.generate([5, 6, 7], params)[0] if isinstance(engine, LLM) else asyncio.run(last())
    print(len(output.outputs[0].token_ids), "tokens")
    engine.close() if isinstance(engine, LLM) else engine.shutdown()
main()
"""
