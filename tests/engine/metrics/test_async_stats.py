"""What stat loggers of an ``AsyncLLM`` are told, with the core in a thread and in a process of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from support.async_engine import (
    HANG_S,
    StepGate,
    check_books,
    collect,
    fails_in_step,
    greedy,
    own_threads,
    run,
    tokens_of,
    until,
)
from support.processes import nothing_left
from support.stats import FakeClock, Kept

from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.errors import EngineError, InvalidRequest


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def engine(make_async_llm, kept, request):
    return make_async_llm(stat_logger_factories=[kept.make], **getattr(request, "param", {}))


async def all_told(kept: Kept, condition) -> None:
    """Wait until records say something, as they come some time after the step."""
    deadline = time.monotonic() + HANG_S
    while not condition(kept):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def says_idle(kept: Kept) -> bool:
    return bool(kept.records) and (kept.records[-1][0] is None or kept.records[-1][0].num_running_reqs == 0)


def test_tokens_and_requests_are_those_that_the_readers_got(engine, kept):
    prompts = [[1 + i % 5] * (1 + i % 7) for i in range(20)]

    async def main() -> None:
        async with engine:
            results = await asyncio.gather(
                *(tokens_of(engine, prompt, greedy(3 + i), request_id=f"r{i}") for i, prompt in enumerate(prompts))
            )

        assert kept.total("num_generation_tokens") == sum(map(len, results))
        assert kept.total("num_prompt_tokens") == sum(map(len, prompts))
        assert {name: each.num_generation_tokens for name, each in kept.finished.items()} == {
            f"r{i}": 3 + i for i in range(20)
        }
        assert len(kept.all_of("time_to_first_tokens_iter")) == 20
        assert len(kept.all_of("inter_token_latencies_iter")) == sum(map(len, results)) - 20
        assert own_threads() == []

    run(main)


def test_times_are_those_of_the_one_clock(make_async_llm, kept):
    clock = FakeClock()

    def prepare(worker) -> None:
        worker.before_step = lambda: clock.advance(2.0)

    engine = make_async_llm(prepare, stat_logger_factories=[kept.make], clock=clock)

    async def main() -> None:
        async with engine:
            await tokens_of(engine, [1, 2, 3], greedy(4), request_id="a")
        stats = kept.finished["a"]

        assert (stats.queued_time, stats.prefill_time, stats.decode_time) == (0.0, 2.0, 6.0)
        assert kept.all_of("inter_token_latencies_iter") == [2.0, 2.0, 2.0]
        # They are read some time after they came, and the core goes on meanwhile.
        assert 2.0 <= kept.all_of("time_to_first_tokens_iter")[0] <= stats.e2e_latency <= 10.0

    run(main)


def test_a_task_that_is_cancelled_ends_its_request_as_aborted(make_async_llm, kept):
    gate = StepGate()
    engine = make_async_llm(gate, stat_logger_factories=[kept.make])

    async def main() -> None:
        task = asyncio.create_task(collect(engine, [1, 2], greedy(100), "gone"))
        await gate.make_steps(4)
        await all_told(kept, lambda kept: kept.total("num_generation_tokens") > 2)
        task.cancel()
        await all_told(kept, lambda kept: kept.finished)

        assert kept.finished["gone"].finish_reason == "abort"
        assert kept.finished["gone"].num_generation_tokens == kept.total("num_generation_tokens")
        gate.open()
        await all_told(kept, says_idle)
        await check_books(engine)

    run(main)


def test_an_abort_from_outside_is_told(make_async_llm, kept):
    gate = StepGate()
    engine = make_async_llm(gate, stat_logger_factories=[kept.make])

    async def main() -> None:
        reader = asyncio.create_task(collect(engine, [1, 2], greedy(100), "gone"))
        await gate.make_steps(4)
        await all_told(kept, lambda kept: kept.total("num_generation_tokens") > 2)
        await engine.abort("gone")
        await reader
        gate.open()
        await all_told(kept, lambda kept: kept.finished)

        assert kept.finished["gone"].finish_reason == "abort"

    run(main)


def test_a_step_that_fails_ends_its_requests_as_aborted(make_async_llm, kept):
    engine = make_async_llm(fails_in_step(3, RuntimeError("no device")), stat_logger_factories=[kept.make])

    async def main() -> None:
        with pytest.raises(EngineError, match="no device"):
            await tokens_of(engine, [1, 2], greedy(10), request_id="a")
        await all_told(kept, lambda kept: kept.finished)
        await all_told(kept, says_idle)

        assert (kept.finished["a"].finish_reason, kept.finished["a"].num_generation_tokens) == ("abort", 2)

    run(main)


@pytest.mark.parametrize("engine", [{"max_model_len": 8}], indirect=True, ids=[""])
def test_a_request_that_the_core_refuses_is_not_told(engine, kept):

    async def main() -> None:
        async with engine:
            with pytest.raises(InvalidRequest):
                await tokens_of(engine, [1] * 9, greedy(), request_id="long")
            await tokens_of(engine, [1], greedy(), request_id="short")

        assert list(kept.finished) == ["short"]

    run(main)


def test_a_logger_that_blocks_holds_up_neither_the_loop_nor_the_steps(make_async_llm):
    entered = []
    may_go = threading.Event()

    class Blocking(Kept):
        def record(self, *args, **kwargs) -> None:
            entered.append(1)
            may_go.wait(HANG_S)

    engine = make_async_llm(stat_logger_factories=[Blocking().make])

    async def main() -> None:
        await asyncio.gather(*(tokens_of(engine, [1, 2, i], greedy(30)) for i in range(8)))

        assert len(engine.worker.steps) >= 30
        await until(lambda: entered)
        assert entered == [1]
        may_go.set()

    run(main)


def test_a_shutdown_without_a_loop_ends_the_loggers(engine, kept):
    engine.shutdown()

    assert kept.calls == ["log_engine_initialized", "log"]
    assert own_threads() == []


class TestCoreProcess:
    @pytest.fixture(autouse=True)
    def mark(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        with nothing_left(monkeypatch) as made:
            yield made

    @pytest.fixture
    def engine(self, mark, random_llama, kept) -> Iterator[AsyncLLM]:
        settings = {"kv_cache_memory": 1 << 20, "core_process": True, "block_size": 4}
        made = AsyncLLM(random_llama, dtype="float32", platform="cpu", stat_loggers=[kept.make], **settings)
        yield made
        made.shutdown()

    def test_its_steps_are_told_like_those_of_a_thread(self, engine, kept):
        prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 6, 7, 8, 9, 10, 11, 12, 14], [3]]

        async def main() -> list[list[int]]:
            async with engine:
                first = await tokens_of(engine, prompts[0], greedy(4), request_id="r0")
                rest = await asyncio.gather(
                    *(tokens_of(engine, prompts[i], greedy(200 + i), request_id=f"r{i}") for i in (1, 2))
                )
            return [first, *rest]

        began = time.monotonic()
        results = asyncio.run(main())
        seconds = time.monotonic() - began

        assert kept.total("num_generation_tokens") == sum(map(len, results)) == 4 + 201 + 202
        assert kept.total("num_prompt_tokens") == sum(map(len, prompts))
        # Two full blocks are the same in the first two prompts.
        assert sum(stats.prefix_cache_stats.hits for stats, _ in kept.records) == 8
        assert kept.finished["r1"].num_cached_tokens == 8
        assert max(stats.num_running_reqs for stats, _ in kept.records) == 2
        for stats in kept.finished.values():
            # Times of two processes are of one clock.
            parts = (stats.queued_time, stats.prefill_time, stats.decode_time)
            assert all(part >= 0 for part in parts)
            assert 0 < sum(parts) <= stats.e2e_latency <= seconds
