"""What the tests of ``AsyncLLM`` share: readers, workers that are slow or fail, and the books at the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from support.fake_engine import FakeWorker

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.engine.outputs.pooling_output_processor import PoolingOutputProcessor

HANG_S = 120
"""What takes longer never ends; much, for a machine that is busy."""


def greedy(max_tokens: int = 5, **params: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vllm_ext")]


async def collect(engine: AsyncLLM, prompt: object, params: SamplingParams, *args: object, **options: object):
    return [output async for output in engine.generate(prompt, params, *args, **options)]


async def tokens_of(engine: AsyncLLM, prompt: object, params: SamplingParams, **options: object) -> list[int]:
    *_, last = await collect(engine, prompt, params, **options)
    assert last.finished
    return last.outputs[0].token_ids


async def check_books(engine: AsyncLLM) -> None:
    """Nothing is in flight, on either side, and all blocks are free."""
    await engine._core.call("check_integrity")
    stats = await engine.get_stats()
    assert (stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage) == (0, 0, 0.0)
    requests = engine._requests
    assert (requests._collectors, requests._internal_ids, requests._core_ids, requests._owners) == ({}, {}, {}, {})
    processor = requests._output_processor
    assert (processor._prompts if isinstance(processor, PoolingOutputProcessor) else processor._states) == {}


def slow(seconds: float) -> Callable[[FakeWorker], None]:
    """Makes each step of the worker take that long."""

    def prepare(worker: FakeWorker) -> None:
        worker.before_step = lambda: time.sleep(seconds)

    return prepare


class StepGate:
    """Lets a worker make the steps that it is allowed to, and holds it in the next one; to be given as ``prepare``."""

    def __init__(self) -> None:
        self._allowed = threading.Semaphore(0)
        self.is_open = False
        self.is_holding = False
        """Whether the worker waits in a step that it is not allowed yet."""

    def __call__(self, worker: FakeWorker) -> None:
        self._worker = worker
        worker.before_step = self._pass

    def _pass(self) -> None:
        if self.is_open or self._allowed.acquire(blocking=False):
            return
        self.is_holding = True
        assert self._allowed.acquire(timeout=HANG_S), "nobody has let the step go on"
        self.is_holding = False

    def open(self) -> None:
        """Let the worker make all further steps."""
        self.is_open = True
        self._allowed.release()

    async def make_steps(self, number: int) -> None:
        """Let it make so many steps; returns when the last of them has begun."""
        goal = len(self._worker.steps) + number
        self._allowed.release(number)
        await until(lambda: len(self._worker.steps) >= goal)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def all_sent(engine: AsyncLLM, number: int) -> None:
    """Wait until the core has been sent so many requests that are in flight."""
    await until(lambda: len(engine._requests._core_ids) == number)


def fails_in_step(number: int, error: BaseException) -> Callable[[FakeWorker], None]:
    def prepare(worker: FakeWorker) -> None:
        def before_step() -> None:
            if len(worker.steps) == number - 1:
                worker.before_step = lambda: None
                raise error

        worker.before_step = before_step

    return prepare


def run(main: Callable[[], object]) -> None:
    """Run ``main()`` in a loop that reports every task that is left over, and every exception nobody took."""
    complaints: list[dict] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await asyncio.wait_for(main(), HANG_S)
        # For what comes late to complain. Generators that were left are closed in tasks of their own.
        await asyncio.sleep(0.02)
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=HANG_S)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(watched())
    assert complaints == []
