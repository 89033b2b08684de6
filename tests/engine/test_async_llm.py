"""``AsyncLLM`` on the fake worker: many tasks, slow ones, cancelled ones, refused requests."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter

import pytest
from support.async_engine import (
    HANG_S,
    StepGate,
    all_sent,
    check_books,
    collect,
    greedy,
    run,
    slow,
    tokens_of,
    until,
)
from support.fake_engine import continuation

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.errors import EngineError, InvalidRequest


def test_a_request_is_streamed_with_all_it_has_so_far(make_async_llm):
    engine = make_async_llm()

    async def main() -> None:
        outputs = await collect(engine, [1, 2, 3], greedy(6), "mine")

        assert {output.request_id for output in outputs} == {"mine"}
        assert outputs[-1].outputs[0].token_ids == continuation([1, 2, 3], 6)
        counts = [len(output.outputs[0].token_ids) for output in outputs]
        assert counts == sorted(set(counts))
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        await check_books(engine)

    run(main)


def test_a_text_is_tokenized_beside_the_loop(make_async_llm):
    engine = make_async_llm()
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


def test_the_tokenizer_is_the_one_that_prompts_go_through(make_async_llm):
    engine = make_async_llm()

    async def main() -> None:
        (*_, last) = await collect(engine, "the quick", greedy())

        assert engine.get_tokenizer().encode("the quick") == last.prompt_token_ids

    run(main)


def test_many_consumers_get_their_own_tokens(make_async_llm):
    engine = make_async_llm(num_blocks=40, max_num_seqs=8, max_num_batched_tokens=16, max_model_len=60)
    prompts = [[1 + i % 5] * (1 + i % 17) + [i] for i in range(64)]

    async def main() -> None:
        results = await asyncio.gather(*(tokens_of(engine, prompt, greedy(3 + len(prompt))) for prompt in prompts))

        assert results == [continuation(prompt, 3 + len(prompt)) for prompt in prompts]
        stats = await engine.get_stats()
        assert stats.prefix_cache_hits > 0
        assert any(len(step.num_scheduled_tokens) > 4 for step in engine.worker.steps), "they ran together"
        await check_books(engine)

    run(main)


def test_requests_that_are_preempted_get_the_same_tokens(make_async_llm):
    engine = make_async_llm(num_blocks=10, max_model_len=40)
    prompts = [[i] * 9 for i in range(1, 7)]

    async def main() -> None:
        results = await asyncio.gather(*(tokens_of(engine, prompt, greedy(20)) for prompt in prompts))

        assert results == [continuation(prompt, 20) for prompt in prompts]
        assert (await engine.get_stats()).num_preemptions > 0
        await check_books(engine)

    run(main)


def test_cancelling_a_task_aborts_its_request_and_leaves_its_neighbours_alone(make_async_llm):
    gate = StepGate()
    engine = make_async_llm(gate)

    async def main() -> None:
        doomed = [asyncio.create_task(collect(engine, [7, i], greedy(100))) for i in range(3)]
        neighbours = [asyncio.create_task(tokens_of(engine, [8, i], greedy(30))) for i in range(3)]
        await all_sent(engine, 6)
        await gate.make_steps(5)
        for task in doomed:
            task.cancel()
        await asyncio.wait(doomed)
        gate.open()
        results = await asyncio.gather(*doomed, *neighbours, return_exceptions=True)

        assert all(isinstance(result, asyncio.CancelledError) for result in results[:3])
        assert results[3:] == [continuation([8, i], 30) for i in range(3)]
        await check_books(engine)
        assert len(engine.worker.steps) < 40, "the aborted requests did not run to their end"

    run(main)


def test_a_task_can_be_cancelled_before_its_request_has_begun(make_async_llm):
    gate = StepGate()
    engine = make_async_llm(gate)

    async def main() -> None:
        tasks = [asyncio.create_task(collect(engine, "the quick", greedy(50))) for _ in range(20)]
        for number, task in enumerate(tasks):
            for _ in range(number % 4):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)

        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        gate.open()
        await check_books(engine)

    run(main)


def test_leaving_the_loop_over_outputs_aborts_the_request(make_async_llm):
    engine = make_async_llm()
    aborted = threading.Event()
    engine.worker.before_step = lambda: len(engine.worker.steps) < 10 or aborted.wait(HANG_S)

    async def main() -> None:
        async for output in engine.generate([1], greedy(100)):
            if len(output.outputs[0].token_ids) >= 3:
                break
        del output
        gc.collect()
        await until(lambda: not engine._requests._collectors)
        aborted.set()
        await check_books(engine)
        assert len(engine.worker.steps) < 15

    run(main)


def test_abort_gives_a_last_output_and_the_id_can_be_used_again_at_once(make_async_llm):
    gate = StepGate()
    engine = make_async_llm(gate)

    async def main() -> None:
        first = asyncio.create_task(collect(engine, [1], greedy(100), "same"))
        await gate.make_steps(4)
        await engine.abort(["same", "never seen"])
        gate.open()
        # Tokens of the first one may still be on their way.
        again = await collect(engine, [2, 2], greedy(8), "same")
        outputs = await first

        completion = outputs[-1].outputs[0]
        assert (completion.finish_reason, outputs[-1].finished) == ("abort", True)
        assert completion.token_ids == continuation([1], len(completion.token_ids))
        assert again[-1].outputs[0].token_ids == continuation([2, 2], 8)
        await check_books(engine)

    run(main)


def test_a_request_can_be_aborted_while_its_prompt_is_tokenized(make_async_llm):
    engine = make_async_llm()
    process_inputs = engine.input_processor.process_inputs
    inside, aborted = threading.Event(), threading.Event()

    def until_aborted(*args: object):
        inside.set()
        assert aborted.wait(HANG_S)
        return process_inputs(*args)

    engine.input_processor.process_inputs = until_aborted

    async def main() -> None:
        task = asyncio.create_task(collect(engine, [1], greedy(100), "early"))
        await until(inside.is_set)
        await engine.abort("early")
        aborted.set()
        (output,) = await task

        assert (output.request_id, output.outputs[0].finish_reason) == ("early", "abort")
        assert engine.worker.steps == []
        await check_books(engine)

    run(main)


def test_a_slow_reader_sees_fewer_states_and_misses_nothing(make_async_llm):
    engine = make_async_llm()

    async def main() -> None:
        counts = []
        async for output in engine.generate([1], greedy(100)):
            counts.append(len(output.outputs[0].token_ids))
            last, goal = output, min(len(engine.worker.steps) + 10, 100)
            while len(engine.worker.steps) < goal:
                await asyncio.sleep(0.001)

        assert last.outputs[0].token_ids == continuation([1], 100)
        assert len(counts) < 50
        assert counts == sorted(set(counts))
        await check_books(engine)

    run(main)


def test_the_loop_is_not_blocked_by_a_step(make_async_llm):
    gate = StepGate()
    engine = make_async_llm(gate)

    async def main() -> None:
        task = asyncio.create_task(tokens_of(engine, [1], greedy(2)))
        await gate.make_steps(1)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert not task.done()
        gate.open()

        assert await task == continuation([1], 2)

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
    def test_one_is_answered_alone_while_the_others_go_on(self, make_async_llm, prompt, params, options, complaint):
        engine = make_async_llm(num_blocks=10, max_model_len=64)

        async def main() -> None:
            good = asyncio.create_task(tokens_of(engine, [1, 2], greedy(10)))
            await asyncio.sleep(0)
            with pytest.raises(InvalidRequest, match=complaint):
                await collect(engine, prompt, params, **options)

            assert await good == continuation([1, 2], 10)
            await check_books(engine)

        run(main)

    def test_an_id_in_flight_is_refused_and_its_owner_goes_on(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate)

        async def main() -> None:
            first = asyncio.create_task(collect(engine, [1], greedy(20), "same"))
            await asyncio.sleep(0)  # its id is taken now, and no step is made yet
            with pytest.raises(InvalidRequest, match="'same' is in flight"):
                await collect(engine, [2], greedy(), "same")
            gate.open()

            assert (await first)[-1].outputs[0].token_ids == continuation([1], 20)
            await check_books(engine)

        run(main)


def test_lower_priorities_come_first(make_async_llm):
    gate = StepGate()
    engine = make_async_llm(gate, policy="priority", max_num_seqs=1)
    ended = []

    async def one(name: str, priority: int) -> None:
        await collect(engine, [1], greedy(5), name, priority=priority)
        ended.append(name)

    async def main() -> None:
        running = asyncio.create_task(one("running", 9))
        await gate.make_steps(1)
        waiting = [asyncio.create_task(one(*each)) for each in (("last", 5), ("first", -1), ("second", 0))]
        await all_sent(engine, 4)
        gate.open()
        await asyncio.gather(running, *waiting)

        assert ended == ["running", "first", "second", "last"]

    run(main)


def test_two_engines_in_one_loop(make_async_llm):
    engines = [make_async_llm(), make_async_llm(max_num_batched_tokens=5)]

    async def main() -> None:
        jobs = [(engine, [i, i + 1] * (1 + i)) for i in range(10) for engine in engines]
        results = await asyncio.gather(*(tokens_of(engine, prompt, greedy(12)) for engine, prompt in jobs))

        assert results == [continuation(prompt, 12) for _, prompt in jobs]
        for engine in engines:
            await check_books(engine)

    run(main)


def test_the_prefix_cache_is_reset_between_two_steps(make_async_llm):
    engine = make_async_llm()
    prompt = list(range(1, 20))

    async def main() -> None:
        await collect(engine, prompt, greedy())
        assert (await collect(engine, prompt, greedy()))[-1].num_cached_tokens == 16
        assert await engine.reset_prefix_cache()
        assert (await collect(engine, prompt, greedy()))[-1].num_cached_tokens == 0

        gate = StepGate()
        gate(engine.worker)
        task = asyncio.create_task(tokens_of(engine, [5, 6], greedy(40)))
        await gate.make_steps(2)
        # Both have been sent before the third step ends, and so they come while the request runs.
        resets = [asyncio.create_task(engine.reset_prefix_cache(reset_running_requests=each)) for each in (False, True)]
        await asyncio.sleep(0)
        gate.open()
        assert await asyncio.gather(*resets) == [False, True]
        assert await task == continuation([5, 6], 40)
        assert (await engine.get_stats()).num_preemptions == 1
        await check_books(engine)

    run(main)


def test_a_stop_string_ends_a_request_in_the_core_too(make_async_llm):
    engine = make_async_llm(slow(0.002))

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
def test_any_mix_of_readers_leaves_nothing_behind(make_async_llm, seed):
    """Fast, slow, cancelled, aborted and leaving readers, refused requests and failing steps, all at once."""
    draw = random.Random(seed)
    engine = make_async_llm(
        num_blocks=draw.choice([12, 40]),
        max_model_len=48,
        max_num_seqs=draw.choice([2, 8]),
        max_num_batched_tokens=draw.choice([5, 64]),
        enable_prefix_caching=draw.random() < 0.7,
        policy="priority",
    )
    kinds = Counter()
    steady = [7, 7]

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
        # Not before it meets somebody who stays to hear of it.
        known = [each for request_id, each in engine.worker.requests.items() if request_id.startswith("steady-")]
        if known and len(known[0].token_ids) < len(steady) + 20:
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
                stays = asyncio.create_task(read("steady", "fast", steady))
        await asyncio.gather(*(task for _, _, task in tasks), stays, return_exceptions=True)
        stays.result()
        for kind, _, task in tasks:
            if task.cancelled():
                assert kind == "cancelled"
            else:
                task.result()
        # All those may have been in flight in the step that failed.
        await read("later", "fast", [1])
        assert set(kinds) <= {"length", "abort", "failed"}
        assert kinds["length"] > 0
        assert kinds["failed"] > 0
        gc.collect()
        await until(lambda: not engine._requests._collectors)
        await check_books(engine)

    run(main)


SEVERAL = SamplingParams(n=3, max_tokens=4)


class TestSeveralCompletions:
    """``n`` completions of one prompt are one request for the reader."""

    def test_they_come_together_and_end_together(self, make_async_llm):
        engine = make_async_llm()

        async def main() -> None:
            states = await collect(engine, [1, 2, 3], SEVERAL, "a")

            assert [output.index for output in states[-1].outputs] == [0, 1, 2]
            assert [output.finish_reason for output in states[-1].outputs] == ["length"] * 3
            assert not any(state.finished for state in states[:-1])
            await check_books(engine)

        run(main)

    def test_an_abort_ends_all_of_them(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate)

        async def main() -> None:
            stream = engine.generate([1, 2, 3], SamplingParams(n=3, max_tokens=100, ignore_eos=True), "a")
            await asyncio.gather(anext(stream), gate.make_steps(3))
            await engine.abort("a")
            gate.open()
            *_, last = [state async for state in stream]

            assert [output.finish_reason for output in last.outputs] == ["abort"] * 3
            await check_books(engine)

        run(main)

    def test_a_prompt_that_cannot_be_served_is_refused_once(self, make_async_llm):
        engine = make_async_llm()

        async def main() -> None:
            with pytest.raises(InvalidRequest, match="max_model_len"):
                await collect(engine, [1] * 100_000, SEVERAL, "a")
            assert await tokens_of(engine, [1], greedy(1))
            await check_books(engine)

        run(main)
