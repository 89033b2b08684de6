"""``AsyncLLM`` when something fails, and when it ends: everybody hears of it, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest
from support.async_engine import (
    HANG_S,
    StepGate,
    all_sent,
    check_books,
    collect,
    fails_in_step,
    greedy,
    own_threads,
    run,
    tokens_of,
    until,
)
from support.fake_engine import FakeDispatcher, FakeWorker, continuation, make_vllm_config

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.errors import EngineError


class TestFailures:
    @pytest.mark.parametrize("error", [ValueError("stop it"), SystemExit("stop it"), BaseException("stop it")])
    def test_a_failed_step_reaches_every_reader_and_new_requests_may_be_tried(self, make_async_llm, error):
        gate = StepGate()
        engine = make_async_llm(gate)

        def fails_once() -> None:
            engine.worker.before_step = lambda: None
            raise error

        async def main() -> None:
            tasks = [asyncio.create_task(collect(engine, [i], greedy(100))) for i in range(1, 5)]
            await all_sent(engine, 4)
            await gate.make_steps(2)
            engine.worker.before_step = fails_once
            gate.open()
            results = await asyncio.gather(*tasks, return_exceptions=True)

            text = f"a step failed, which ended the 4 requests in flight: {type(error).__name__}: stop it"
            assert [(type(result), str(result)) for result in results] == [(EngineError, text)] * 4
            assert len({id(result) for result in results}) == 4
            assert await tokens_of(engine, [9], greedy(4)) == continuation([9], 4)
            await engine.check_health()
            await check_books(engine)

        run(main)

    def test_the_error_of_a_step_has_the_ids_that_the_users_gave(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate)

        def fails() -> None:
            raise ValueError("stop it")

        async def ids_in_error(request_id: str, n: int) -> tuple[str, ...]:
            with pytest.raises(EngineError) as caught:
                async for _ in engine.generate([1], SamplingParams(n=n, max_tokens=100), request_id):
                    pass
            return caught.value.request_ids

        async def main() -> None:
            tasks = [asyncio.create_task(ids_in_error(*request)) for request in (("one", 1), ("two", 2))]
            await all_sent(engine, 2)
            await gate.make_steps(2)
            engine.worker.before_step = fails
            gate.open()

            assert await asyncio.gather(*tasks) == [("one", "two")] * 2

        run(main)

    def test_what_a_slow_reader_has_not_read_comes_before_the_error(self, make_async_llm):
        engine = make_async_llm(fails_in_step(4, ValueError("stop it")))

        async def main() -> None:
            seen = []

            async def read() -> None:
                async for output in engine.generate([1], greedy(50)):
                    seen.append(output.outputs[0].token_ids)
                    await until(lambda: not engine._requests._collectors)

            with pytest.raises(EngineError, match="stop it"):
                await read()
            assert seen[-1] == continuation([1], 3)
            await check_books(engine)

        run(main)

    def test_an_engine_whose_core_has_died_says_why_to_all(self, make_async_llm):
        class Fatal(KeyboardInterrupt):
            """What passes through a step: nothing else does."""

        engine = make_async_llm(fails_in_step(3, Fatal("out of order")))

        async def main() -> None:
            results = await asyncio.gather(
                collect(engine, [1], greedy(50)), collect(engine, [2], greedy(50)), return_exceptions=True
            )
            for result in results:
                assert isinstance(result, EngineError)
                assert "the engine core stopped" in str(result)
                assert "Fatal: out of order" in str(result)
            assert not engine.is_running
            assert engine.is_stopped
            assert engine.errored
            for again in (collect(engine, [3], greedy()), engine.check_health()):
                with pytest.raises(EngineError, match="out of order"):
                    await again
            assert "out of order" in str(engine.dead_error)

        run(main)

    def test_a_worker_that_is_not_well_is_reported_and_stays(self, make_async_llm):
        def prepare(worker: FakeWorker) -> None:
            def check_health() -> None:
                raise ValueError("too hot")

            worker.check_health = check_health

        engine = make_async_llm(prepare)

        async def main() -> None:
            with pytest.raises(EngineError, match="ValueError: too hot"):
                await engine.check_health()
            assert await tokens_of(engine, [9], greedy(4)) == continuation([9], 4)

        run(main)

    def test_outputs_that_cannot_be_read_end_their_requests_only(self, make_async_llm):
        engine = make_async_llm()
        process_outputs = engine._requests._output_processor.process_outputs

        def fails_once(outputs: object):
            engine._requests._output_processor.process_outputs = process_outputs
            raise ValueError("no such token")

        engine._requests._output_processor.process_outputs = fails_once

        async def main() -> None:
            with pytest.raises(EngineError, match="outputs of a step cannot be read: ValueError: no such token"):
                await collect(engine, [1], greedy(50))
            assert await tokens_of(engine, [9], greedy(4)) == continuation([9], 4)
            await check_books(engine)

        run(main)

    def test_an_engine_that_cannot_start_leaves_no_thread(self, model_dir):
        def prepare(worker: FakeWorker) -> None:
            def load_model() -> None:
                raise ValueError("no weights")

            worker.load_model = load_model

        with pytest.raises(EngineError, match="failed to start: ValueError: no weights"):
            AsyncLLM.from_dispatcher(FakeDispatcher(make_vllm_config(model_dir), prepare=prepare))
        assert own_threads() == []


class TestTheEnd:
    def test_shutdown_while_streaming_tells_every_reader(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate)

        async def main() -> None:
            tasks = [asyncio.create_task(collect(engine, [i], greedy(100))) for i in range(1, 4)]
            await gate.make_steps(3)
            gate.open()
            engine.shutdown()
            engine.shutdown()
            results = await asyncio.gather(*tasks, return_exceptions=True)

            assert [str(result) for result in results] == ["this engine is shut down; make a new one"] * 3
            with pytest.raises(EngineError, match="shut down"):
                await collect(engine, [1], greedy())
            assert own_threads() == []

        run(main)

    def test_shutdown_while_prompts_are_tokenized_tells_everybody_and_cancels_nobody(self, make_async_llm):
        engine = make_async_llm()
        inside = threading.Event()
        encode = engine.tokenizer.encode

        def until_the_end(*args: object, **options: object) -> list[int]:
            inside.set()
            while engine.is_running:
                time.sleep(0.001)
            return encode(*args, **options)

        engine.tokenizer.encode = until_the_end

        async def main() -> None:
            tasks = [asyncio.create_task(collect(engine, "again", greedy(3))) for _ in range(20)]
            await until(inside.is_set)
            engine.shutdown()
            await asyncio.wait(tasks)

            assert [type(task.exception()) for task in tasks if not task.cancelled()] == [EngineError] * 20

        run(main)

    def test_leaving_the_context_does_not_block_the_loop(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate)

        async def tick_and_release() -> None:
            for _ in range(30):
                await asyncio.sleep(0.001)
            gate.open()

        async def main() -> None:
            async with engine:
                task = asyncio.create_task(collect(engine, [1], greedy(100)))
                await gate.make_steps(1)
                await until(lambda: gate.is_holding)
                ticking = asyncio.create_task(tick_and_release())
            assert gate.is_open
            assert own_threads() == []
            with pytest.raises(EngineError, match="shut down"):
                await task
            await ticking

        run(main)

    def test_leaving_a_dead_engine_does_not_block_the_loop_while_a_prompt_is_tokenized(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate)
        inside, may_go = threading.Event(), threading.Event()

        def held(*args: object, **options: object) -> list[int]:
            inside.set()
            may_go.wait(HANG_S)
            return [1]

        def dies() -> None:
            raise KeyboardInterrupt("out of order")

        async def tick_and_let_go() -> None:
            for _ in range(30):
                await asyncio.sleep(0.001)
            may_go.set()

        async def main() -> None:
            async with engine:
                tasks = [asyncio.create_task(collect(engine, [1], greedy(100)))]
                await gate.make_steps(1)
                engine.tokenizer.encode = held
                tasks.append(asyncio.create_task(collect(engine, "again", greedy())))
                await until(inside.is_set)
                engine.worker.before_step = dies
                gate.open()
                await until(lambda: engine.is_stopped and not engine._core.is_alive)
                ticking = asyncio.create_task(tick_and_let_go())
            assert may_go.is_set()
            assert own_threads() == []
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, EngineError)
                assert "out of order" in str(result)
            await ticking

        run(main)

    def test_it_can_be_shut_down_from_another_thread(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate)

        async def main() -> None:
            task = asyncio.create_task(collect(engine, [1], greedy(100)))
            await gate.make_steps(3)
            ending = asyncio.create_task(asyncio.to_thread(engine.shutdown))
            await until(lambda: not engine.is_running)
            gate.open()
            await ending
            with pytest.raises(EngineError, match="shut down"):
                await task

        run(main)

    def test_who_comes_before_the_loop_has_heard_of_a_shutdown_in_another_thread_is_refused(self, make_async_llm):
        engine = make_async_llm()

        async def main() -> None:
            await tokens_of(engine, [1], greedy())
            ending = threading.Thread(target=engine.shutdown)
            ending.start()
            # The loop stands still meanwhile.
            ending.join()
            with pytest.raises(EngineError, match="this engine is shut down"):
                await collect(engine, "again", greedy())
            with pytest.raises(EngineError, match="this engine is shut down"):
                await engine.check_health()

        run(main)

    def test_a_loop_that_ends_first_leaves_an_engine_that_can_be_shut_down(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate)

        async def main() -> None:
            await asyncio.gather(anext(engine.generate([1], greedy(100))), gate.make_steps(2))

        asyncio.run(main())
        gate.open()
        engine.shutdown()

        assert own_threads() == []

    def test_a_loop_that_stands_still_has_an_engine_that_can_be_shut_down(self, make_async_llm):
        engine = make_async_llm()
        loop = asyncio.new_event_loop()
        reader = loop.create_task(collect(engine, [1], greedy(90)))
        loop.run_until_complete(asyncio.sleep(0))

        assert not engine.is_stopped
        assert not engine.errored
        engine.shutdown()

        assert not engine.is_running
        assert engine.is_stopped
        assert engine.errored
        with pytest.raises(EngineError, match="this engine is shut down"):
            loop.run_until_complete(reader)
        loop.close()

    def test_a_loop_that_is_closed_while_it_is_told_has_an_engine_that_can_be_shut_down(
        self, make_async_llm, monkeypatch
    ):
        engine = make_async_llm()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(tokens_of(engine, [1], greedy()))
        loop.close()
        # What was true when it was asked.
        monkeypatch.setattr(loop, "is_running", lambda: True)

        engine.shutdown()

        assert engine.is_stopped
        assert own_threads() == []

    def test_another_loop_is_refused(self, make_async_llm):
        engine = make_async_llm()
        run(lambda: tokens_of(engine, [1], greedy()))

        async def main() -> None:
            with pytest.raises(EngineError, match="belongs to another event loop"):
                await collect(engine, [1], greedy())

        run(main)

    def test_an_engine_that_is_forgotten_ends_its_thread(self, model_dir):
        engine = AsyncLLM.from_dispatcher(FakeDispatcher(make_vllm_config(model_dir)))
        gone = weakref.ref(engine)
        del engine
        gc.collect()

        assert gone() is None
        for thread in own_threads():
            thread.join(HANG_S)
        assert own_threads() == []
