"""``AsyncLLM`` on the fake worker: many tasks, slow ones, cancelled ones, failing steps, and its end."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from support.fake_engine import FakeDispatcher, FakeWorker, continuation, make_vllm_config

from vllm_ext.contracts.outputs import CompletionOutput, RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.engine.core_messages import (
    AbortRequests,
    EngineCoreDead,
    EngineCoreOutputs,
    EngineCoreRequest,
    FromCore,
    RequestRefused,
    RequestsFailed,
    Shutdown,
    ToCore,
    UtilityCall,
    UtilityResult,
)
from vllm_ext.engine.output_collector import RequestOutputCollector, merge_outputs
from vllm_ext.engine.request import EngineCoreOutput, TokenLogprobs
from vllm_ext.errors import EngineError, InvalidRequest


def greedy(max_tokens: int = 5, **params: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vllm_ext")]


@pytest.fixture
def make_engine(model_dir: Path) -> Iterator[Callable[..., AsyncLLM]]:
    """Makes an engine on the fake worker, which is an attribute of it; at the end no thread is left."""
    made: list[AsyncLLM] = []

    def make(prepare: Callable[[FakeWorker], None] = lambda worker: None, **options: object) -> AsyncLLM:
        dispatcher = FakeDispatcher(make_vllm_config(model_dir, **options), prepare=prepare)
        engine = AsyncLLM.from_dispatcher(dispatcher)
        engine.worker = dispatcher.worker
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.shutdown()
        assert engine.worker.calls.count("shutdown") == 1
    assert own_threads() == []


async def collect(engine: AsyncLLM, prompt: object, params: SamplingParams, *args: object, **options: object):
    return [output async for output in engine.generate(prompt, params, *args, **options)]


async def tokens_of(engine: AsyncLLM, prompt: object, params: SamplingParams, **options: object) -> list[int]:
    *_, last = await collect(engine, prompt, params, **options)
    assert last.finished
    return last.outputs[0].token_ids


async def check_books(engine: AsyncLLM) -> None:
    """Nothing is in flight, on either side, and all blocks are free."""
    await engine._call("check_integrity")
    stats = await engine.get_stats()
    assert (stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage) == (0, 0, 0.0)
    requests = engine._requests
    assert (requests._collectors, requests._internal_ids, requests._core_ids, requests._owners) == ({}, {}, {}, {})
    assert requests._output_processor._states == {}


def slow(seconds: float) -> Callable[[FakeWorker], None]:
    """Makes each step of the worker take that long."""

    def prepare(worker: FakeWorker) -> None:
        worker.before_step = lambda: time.sleep(seconds)

    return prepare


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
        await asyncio.wait_for(main(), 30)
        await asyncio.sleep(0.02)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(watched())
    assert complaints == []


def test_a_request_is_streamed_with_all_it_has_so_far(make_engine):
    engine = make_engine()

    async def main() -> None:
        outputs = await collect(engine, [1, 2, 3], greedy(6), "mine")

        assert {output.request_id for output in outputs} == {"mine"}
        assert outputs[-1].outputs[0].token_ids == continuation([1, 2, 3], 6)
        counts = [len(output.outputs[0].token_ids) for output in outputs]
        assert counts == sorted(set(counts))
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        await check_books(engine)

    run(main)


def test_a_text_is_tokenized_beside_the_loop(make_engine):
    engine = make_engine()
    threads = []
    process_inputs = engine.input_processor.process_inputs

    def watched(*args: object):
        threads.append(threading.current_thread().name)
        return process_inputs(*args)

    engine.input_processor.process_inputs = watched

    async def main() -> None:
        (*_, last) = await collect(engine, "the quick", greedy())

        assert last.prompt == "the quick"
        assert last.outputs[0].token_ids == continuation(last.prompt_token_ids, 5)
        assert threads == ["vllm_ext-tokenizer_0"]

    run(main)


def test_many_consumers_get_their_own_tokens(make_engine):
    engine = make_engine(num_blocks=40, max_num_seqs=8, max_num_batched_tokens=16, max_model_len=60)
    prompts = [[1 + i % 5] * (1 + i % 17) + [i] for i in range(64)]

    async def main() -> None:
        results = await asyncio.gather(*(tokens_of(engine, prompt, greedy(3 + len(prompt))) for prompt in prompts))

        assert results == [continuation(prompt, 3 + len(prompt)) for prompt in prompts]
        stats = await engine.get_stats()
        assert stats.prefix_cache_hits > 0
        assert any(len(step.num_scheduled_tokens) > 4 for step in engine.worker.steps), "they ran together"
        await check_books(engine)

    run(main)


def test_requests_that_are_preempted_get_the_same_tokens(make_engine):
    engine = make_engine(num_blocks=10, max_model_len=40)
    prompts = [[i] * 9 for i in range(1, 7)]

    async def main() -> None:
        results = await asyncio.gather(*(tokens_of(engine, prompt, greedy(20)) for prompt in prompts))

        assert results == [continuation(prompt, 20) for prompt in prompts]
        assert (await engine.get_stats()).num_preemptions > 0
        await check_books(engine)

    run(main)


def test_cancelling_a_task_aborts_its_request_and_leaves_its_neighbours_alone(make_engine):
    engine = make_engine(slow(0.002))

    async def main() -> None:
        doomed = [asyncio.create_task(collect(engine, [7, i], greedy(100))) for i in range(3)]
        neighbours = [asyncio.create_task(tokens_of(engine, [8, i], greedy(30))) for i in range(3)]
        while len(engine.worker.steps) < 5:
            await asyncio.sleep(0.001)
        for task in doomed:
            task.cancel()
        results = await asyncio.gather(*doomed, *neighbours, return_exceptions=True)

        assert all(isinstance(result, asyncio.CancelledError) for result in results[:3])
        assert results[3:] == [continuation([8, i], 30) for i in range(3)]
        await check_books(engine)
        assert len(engine.worker.steps) < 80, "the aborted requests did not run to their end"

    run(main)


def test_a_task_can_be_cancelled_before_its_request_has_begun(make_engine):
    engine = make_engine()

    async def main() -> None:
        tasks = [asyncio.create_task(collect(engine, "the quick", greedy(50))) for _ in range(20)]
        for number, task in enumerate(tasks):
            for _ in range(number % 4):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)

        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await check_books(engine)

    run(main)


def test_leaving_the_loop_over_outputs_aborts_the_request(make_engine):
    engine = make_engine(slow(0.002))

    async def main() -> None:
        async for output in engine.generate([1], greedy(100)):
            if len(output.outputs[0].token_ids) >= 3:
                break
        del output
        gc.collect()
        await asyncio.sleep(0.05)
        await check_books(engine)
        assert len(engine.worker.steps) < 40

    run(main)


def test_abort_gives_a_last_output_and_the_id_can_be_used_again_at_once(make_engine):
    engine = make_engine(slow(0.002))

    async def main() -> None:
        first = asyncio.create_task(collect(engine, [1], greedy(100), "same"))
        while len(engine.worker.steps) < 4:
            await asyncio.sleep(0.001)
        await engine.abort(["same", "never seen"])
        # Tokens of the first one may still be on their way.
        again = await collect(engine, [2, 2], greedy(8), "same")
        outputs = await first

        completion = outputs[-1].outputs[0]
        assert (completion.finish_reason, outputs[-1].finished) == ("abort", True)
        assert completion.token_ids == continuation([1], len(completion.token_ids))
        assert again[-1].outputs[0].token_ids == continuation([2, 2], 8)
        await check_books(engine)

    run(main)


def test_a_request_can_be_aborted_while_its_prompt_is_tokenized(make_engine):
    engine = make_engine()
    process_inputs = engine.input_processor.process_inputs

    def slowly(*args: object):
        time.sleep(0.05)
        return process_inputs(*args)

    engine.input_processor.process_inputs = slowly

    async def main() -> None:
        task = asyncio.create_task(collect(engine, [1], greedy(100), "early"))
        await asyncio.sleep(0.01)
        await engine.abort("early")
        (output,) = await task

        assert (output.request_id, output.outputs[0].finish_reason) == ("early", "abort")
        assert engine.worker.steps == []
        await check_books(engine)

    run(main)


def test_a_slow_reader_sees_fewer_states_and_misses_nothing(make_engine):
    engine = make_engine()

    async def main() -> None:
        counts = []
        async for output in engine.generate([1], greedy(100)):
            counts.append(len(output.outputs[0].token_ids))
            await asyncio.sleep(0.02)
            last = output

        assert last.outputs[0].token_ids == continuation([1], 100)
        assert len(counts) < 50
        assert counts == sorted(set(counts))
        await check_books(engine)

    run(main)


def test_the_loop_is_not_blocked_by_a_step(make_engine):
    engine = make_engine(slow(0.2))

    async def main() -> None:
        task = asyncio.create_task(tokens_of(engine, [1], greedy(2)))
        num_turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            num_turns += 1

        assert num_turns > 50

    run(main)


class TestBadRequests:
    @pytest.mark.parametrize(
        ("prompt", "params", "options", "complaint"),
        [
            ([], None, {}, "the prompt is empty"),
            ("\ud800", None, {}, "cannot be tokenized"),
            ([1], {"temperature": 0}, {}, "it takes SamplingParams"),
            ([1] * 64, None, {}, "64 tokens, and max_model_len.* is 64; give at most 63"),
            ([1] * 50, None, {}, "50 tokens, and the whole KV cache holds 40"),
            ([1], None, {"priority": 1}, "priority is 1, and engine.scheduling_policy is 'fcfs'"),
            ([1], None, {"priority": "high"}, "priority is 'high'; it takes an integer"),
            ([1], None, {"request_id": 7}, "request_id is 7; it takes a text"),
        ],
    )
    def test_one_is_answered_alone_while_the_others_go_on(self, make_engine, prompt, params, options, complaint):
        engine = make_engine(num_blocks=10, max_model_len=64)

        async def main() -> None:
            good = asyncio.create_task(tokens_of(engine, [1, 2], greedy(10)))
            await asyncio.sleep(0)
            with pytest.raises(InvalidRequest, match=complaint):
                await collect(engine, prompt, params, **options)

            assert await good == continuation([1, 2], 10)
            await check_books(engine)

        run(main)

    def test_an_id_in_flight_is_refused_and_its_owner_goes_on(self, make_engine):
        engine = make_engine(slow(0.002))

        async def main() -> None:
            first = asyncio.create_task(collect(engine, [1], greedy(20), "same"))
            await asyncio.sleep(0.01)
            with pytest.raises(InvalidRequest, match="'same' is in flight"):
                await collect(engine, [2], greedy(), "same")

            assert (await first)[-1].outputs[0].token_ids == continuation([1], 20)
            await check_books(engine)

        run(main)


def test_lower_priorities_come_first(make_engine):
    engine = make_engine(slow(0.002), policy="priority", max_num_seqs=1)
    ended = []

    async def one(name: str, priority: int) -> None:
        await collect(engine, [1], greedy(5), name, priority=priority)
        ended.append(name)

    async def main() -> None:
        running = asyncio.create_task(one("running", 9))
        while not engine.worker.steps:
            await asyncio.sleep(0.001)
        await asyncio.gather(running, one("last", 5), one("first", -1), one("second", 5 - 5))

        assert ended == ["running", "first", "second", "last"]

    run(main)


class TestFailures:
    @pytest.mark.parametrize("error", [ValueError("stop it"), SystemExit("stop it")])
    def test_a_failed_step_reaches_every_reader_and_new_requests_may_be_tried(self, make_engine, error):
        engine = make_engine(slow(0.002))

        def fails_once() -> None:
            engine.worker.before_step = lambda: None
            raise error

        async def main() -> None:
            tasks = [asyncio.create_task(collect(engine, [i], greedy(100))) for i in range(1, 5)]
            while len(engine.worker.requests) < 4:
                await asyncio.sleep(0.001)
            engine.worker.before_step = fails_once
            results = await asyncio.gather(*tasks, return_exceptions=True)

            text = f"a step failed, which ended the 4 requests in flight: {type(error).__name__}: stop it"
            assert [(type(result), str(result)) for result in results] == [(EngineError, text)] * 4
            assert len({id(result) for result in results}) == 4
            assert await tokens_of(engine, [9], greedy(4)) == continuation([9], 4)
            await engine.check_health()
            await check_books(engine)

        run(main)

    def test_what_a_slow_reader_has_not_read_comes_before_the_error(self, make_engine):
        engine = make_engine(fails_in_step(4, ValueError("stop it")))

        async def main() -> None:
            seen = []

            async def read() -> None:
                async for output in engine.generate([1], greedy(50)):
                    seen.append(output.outputs[0].token_ids)
                    await asyncio.sleep(0.05)

            with pytest.raises(EngineError, match="stop it"):
                await read()
            assert seen[-1] == continuation([1], 3)
            await check_books(engine)

        run(main)

    def test_an_engine_whose_core_has_died_says_why_to_all(self, make_engine):
        class Fatal(BaseException):
            pass

        engine = make_engine(fails_in_step(3, Fatal("out of order")))

        async def main() -> None:
            results = await asyncio.gather(
                collect(engine, [1], greedy(50)), collect(engine, [2], greedy(50)), return_exceptions=True
            )
            for result in results:
                assert isinstance(result, EngineError)
                assert "the engine core stopped" in str(result)
                assert "Fatal: out of order" in str(result)
            assert not engine.is_running
            for again in (collect(engine, [3], greedy()), engine.check_health()):
                with pytest.raises(EngineError, match="out of order"):
                    await again
            assert "out of order" in str(engine.dead_error)

        run(main)

    def test_a_worker_that_is_not_well_is_reported_and_stays(self, make_engine):
        def prepare(worker: FakeWorker) -> None:
            def check_health() -> None:
                raise ValueError("too hot")

            worker.check_health = check_health

        engine = make_engine(prepare)

        async def main() -> None:
            with pytest.raises(EngineError, match="ValueError: too hot"):
                await engine.check_health()
            assert await tokens_of(engine, [9], greedy(4)) == continuation([9], 4)

        run(main)

    def test_outputs_that_cannot_be_read_end_their_requests_only(self, make_engine):
        engine = make_engine()
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
    def test_shutdown_while_streaming_tells_every_reader(self, make_engine):
        engine = make_engine(slow(0.005))

        async def main() -> None:
            tasks = [asyncio.create_task(collect(engine, [i], greedy(100))) for i in range(1, 4)]
            while len(engine.worker.steps) < 3:
                await asyncio.sleep(0.001)
            engine.shutdown()
            engine.shutdown()
            results = await asyncio.gather(*tasks, return_exceptions=True)

            assert [str(result) for result in results] == ["this engine is shut down; make a new one"] * 3
            with pytest.raises(EngineError, match="shut down"):
                await collect(engine, [1], greedy())
            assert own_threads() == []

        run(main)

    def test_leaving_the_context_does_not_block_the_loop(self, make_engine):
        engine = make_engine(slow(0.2))
        ticks = []

        async def tick() -> None:
            while True:
                ticks.append(time.perf_counter())
                await asyncio.sleep(0.001)

        async def main() -> None:
            ticking = asyncio.create_task(tick())
            async with engine:
                task = asyncio.create_task(collect(engine, [1], greedy(100)))
                while not engine.worker.calls.count("step") and not engine._requests._core_ids:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.02)
                num_ticks = len(ticks)
            assert len(ticks) - num_ticks > 30
            assert own_threads() == []
            with pytest.raises(EngineError, match="shut down"):
                await task
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

        run(main)

    def test_it_can_be_shut_down_from_another_thread(self, make_engine):
        engine = make_engine(slow(0.005))

        async def main() -> None:
            task = asyncio.create_task(collect(engine, [1], greedy(100)))
            while len(engine.worker.steps) < 3:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(engine.shutdown)
            with pytest.raises(EngineError, match="shut down"):
                await task

        run(main)

    def test_a_loop_that_ends_first_leaves_an_engine_that_can_be_shut_down(self, make_engine):
        engine = make_engine(slow(0.005))

        async def main() -> None:
            async for _ in engine.generate([1], greedy(100)):
                break

        run(main)
        engine.shutdown()

        assert own_threads() == []

    def test_another_loop_is_refused(self, make_engine):
        engine = make_engine()
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
            thread.join(5)
        assert own_threads() == []


def test_two_engines_in_one_loop(make_engine):
    engines = [make_engine(), make_engine(max_num_batched_tokens=5)]

    async def main() -> None:
        jobs = [(engine, [i, i + 1] * (1 + i)) for i in range(10) for engine in engines]
        results = await asyncio.gather(*(tokens_of(engine, prompt, greedy(12)) for engine, prompt in jobs))

        assert results == [continuation(prompt, 12) for _, prompt in jobs]
        for engine in engines:
            await check_books(engine)

    run(main)


def test_the_prefix_cache_is_reset_between_two_steps(make_engine):
    engine = make_engine(slow(0.002))
    prompt = list(range(1, 20))

    async def main() -> None:
        await collect(engine, prompt, greedy())
        assert (await collect(engine, prompt, greedy()))[-1].num_cached_tokens == 16
        assert await engine.reset_prefix_cache()
        assert (await collect(engine, prompt, greedy()))[-1].num_cached_tokens == 0

        task = asyncio.create_task(tokens_of(engine, [5, 6], greedy(40)))
        while (await engine.get_stats()).num_running_reqs == 0:
            await asyncio.sleep(0.001)
        assert not await engine.reset_prefix_cache()
        assert await engine.reset_prefix_cache(reset_running_requests=True)
        assert await task == continuation([5, 6], 40)
        assert (await engine.get_stats()).num_preemptions == 1
        await check_books(engine)

    run(main)


def test_a_stop_string_ends_a_request_in_the_core_too(make_engine):
    engine = make_engine(slow(0.002))

    async def main() -> None:
        whole = (await collect(engine, "the quick", greedy(60)))[-1].outputs[0]
        assert len(whole.text) > 20
        stop = whole.text[10:14]
        completion = (await collect(engine, "the quick", greedy(60, stop=[stop])))[-1].outputs[0]

        assert completion.text == whole.text[: whole.text.index(stop)]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
        await check_books(engine)

    run(main)


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_readers_leaves_nothing_behind(make_engine, seed):
    """Fast, slow, cancelled, aborted and leaving readers, refused requests and failing steps, all at once."""
    draw = random.Random(seed)
    engine = make_engine(
        num_blocks=draw.choice([12, 40]),
        max_model_len=48,
        max_num_seqs=draw.choice([2, 8]),
        max_num_batched_tokens=draw.choice([5, 64]),
        enable_prefix_caching=draw.random() < 0.7,
        policy="priority",
    )
    kinds = Counter()

    async def read(name: str, kind: str, prompt: list[int]) -> None:
        last = None
        try:
            async for output in engine.generate(prompt, greedy(20), name, priority=draw.randrange(3)):
                last = output.outputs[0]
                assert last.token_ids == continuation(prompt, len(last.token_ids))
                if kind == "slow":
                    await asyncio.sleep(0.003)
                elif kind == "leaves" and len(last.token_ids) > 5:
                    return
            kinds[last.finish_reason] += 1
            assert last.finish_reason == "abort" or len(last.token_ids) == 20
        except InvalidRequest:
            assert kind == "too long"
        except EngineError as error:
            kinds["failed" if "planned" in str(error) else str(error)] += 1

    def fail() -> None:
        engine.worker.before_step = lambda: None
        raise ValueError("planned")

    async def main() -> None:
        tasks = []
        for number in range(60):
            kind = draw.choice(["fast", "slow", "cancelled", "aborted", "leaves", "too long"])
            prompt = [1 + number % 3] * (60 if kind == "too long" else draw.randrange(1, 24))
            task = asyncio.create_task(read(str(number), kind, prompt))
            tasks.append((kind, str(number), task))
            await asyncio.sleep(draw.choice([0, 0, 0.001]))
            other_kind, name, other = draw.choice(tasks)
            if other_kind == "cancelled":
                other.cancel()
            elif other_kind == "aborted":
                await engine.abort(name)
            if number == 40:
                engine.worker.before_step = fail
        await asyncio.gather(*(task for _, _, task in tasks), return_exceptions=True)
        for kind, _, task in tasks:
            if task.cancelled():
                assert kind == "cancelled"
            else:
                task.result()
        assert set(kinds) <= {"length", "abort", "failed"}
        assert kinds["length"] > 0
        assert kinds["failed"] > 0
        gc.collect()
        await asyncio.sleep(0.02)
        await check_books(engine)

    run(main)


def test_messages_can_cross_the_border_of_a_process():
    request = EngineCoreRequest("a", [1, 2], greedy(3, stop=["x"], stop_token_ids=[7]), frozenset({0}), priority=-1)
    to_core = [request, AbortRequests(["a"], "stop"), UtilityCall(1, "get_stats", {"a": 1}), Shutdown()]
    output = EngineCoreOutput("a", [5], "stop", 7, num_cached_tokens=16)
    output.new_logprobs = TokenLogprobs([[5, 6]], [[-0.5, -1.0]], [1])
    from_core = [
        EngineCoreOutputs([output]),
        RequestRefused("a", "too long"),
        RequestsFailed(["a"], "broken"),
        UtilityResult(1, value=True),
        EngineCoreDead("broken"),
    ]

    for messages, kind in ((to_core, ToCore), (from_core, FromCore)):
        for message in messages:
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kind) == message


def make_output(*counts: int | None, finished: bool = False) -> RequestOutput:
    """A state in which completion ``i`` has that many tokens; nothing about those with ``None``."""
    completions = [CompletionOutput(i, "x" * n, [i] * n) for i, n in enumerate(counts) if n is not None]
    return RequestOutput("internal", None, [1], outputs=completions, finished=finished)


class TestCollector:
    def test_states_are_merged_until_they_are_read(self):
        async def main() -> None:
            collector = RequestOutputCollector("mine")
            for count in (1, 2, 3):
                collector.put(make_output(count))
            output = await collector.get()
            collector.put(make_output(4, finished=True))

            assert (output.request_id, output.outputs) == ("mine", make_output(3).outputs)
            assert (await collector.get()).finished

        run(main)

    def test_completions_of_which_the_later_state_says_nothing_are_kept(self):
        merged = merge_outputs(make_output(1, 5), make_output(2, None, 7, finished=True))

        assert merged == make_output(2, 5, 7, finished=True)

    def test_a_reader_that_waits_is_woken(self):
        async def main() -> None:
            collector = RequestOutputCollector("mine")
            reader = asyncio.create_task(collector.get())
            await asyncio.sleep(0)
            collector.put(make_output(1))

            assert (await reader).outputs == make_output(1).outputs

        run(main)


SEVERAL = SamplingParams(n=3, max_tokens=4)


class TestSeveralCompletions:
    """``n`` completions of one prompt are one request for the reader."""

    def test_they_come_together_and_end_together(self, make_engine):
        engine = make_engine()

        async def main() -> None:
            states = await collect(engine, [1, 2, 3], SEVERAL, "a")

            assert [output.index for output in states[-1].outputs] == [0, 1, 2]
            assert [output.finish_reason for output in states[-1].outputs] == ["length"] * 3
            assert not any(state.finished for state in states[:-1])
            await check_books(engine)

        run(main)

    def test_an_abort_ends_all_of_them(self, make_engine):
        engine = make_engine(slow(0.002))

        async def main() -> None:
            stream = engine.generate([1, 2, 3], SamplingParams(n=3, max_tokens=100, ignore_eos=True), "a")
            await anext(stream)
            await engine.abort("a")
            *_, last = [state async for state in stream]

            assert [output.finish_reason for output in last.outputs] == ["abort"] * 3
            await check_books(engine)

        run(main)

    def test_a_prompt_that_cannot_be_served_is_refused_once(self, make_engine):
        engine = make_engine()

        async def main() -> None:
            with pytest.raises(InvalidRequest, match="max_model_len"):
                await collect(engine, [1] * 100_000, SEVERAL, "a")
            assert await tokens_of(engine, [1], greedy(1))
            await check_books(engine)

        run(main)
