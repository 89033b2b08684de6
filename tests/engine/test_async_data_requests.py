"""Requests with data in an event loop: many at once, cancelled, aborted, and failing."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter

import pytest
from support.async_engine import check_books, own_threads, run, tokens_of, until
from support.io_processors import install
from support.processes import wait_until

from vllm_ext import AsyncLLM, RequestOutputKind, SamplingParams
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput
from vllm_ext.errors import EngineError, InvalidRequest, PluginError

SOURCE = r"io processor plugin 'split' of dist-split 0\.1"
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
FAULTS = {"refuse": InvalidRequest, "pre": PluginError, "post": PluginError}
PARAMS = "    def merge_sampling_params(self, params=None): return params\n"


@pytest.fixture
def make_engine():
    made: list[AsyncLLM] = []

    def make(**options) -> AsyncLLM:
        made.append(AsyncLLM(platform="cpu", io_processor_plugin="split", **options))
        return made[-1]

    yield make
    for engine in made:
        engine.shutdown()
    # Those that watch a process of the engine end a moment after it.
    assert wait_until(lambda: own_threads() == [])


def gated(*statements: str) -> str:
    """A processor that notes a request, waits for its ``GATE``, and then does what the statements say."""
    lines = ("CALLS.append(request_id)", "self.GATE.wait(120)", *statements, "return prompt")
    head = "    GATE = threading.Event()\n    def pre_process(self, prompt, request_id=None):\n"
    return head + "".join(f"        {line}\n" for line in lines)


def kept(engine: AsyncLLM) -> dict[str, object]:
    return engine._data_requests._requests.processor.kept


async def answer(engine: AsyncLLM, data: object, *args, **options) -> PoolingRequestOutput:
    (output,) = [output async for output in engine.generate({"data": data}, *args, **options)]
    return output


async def check_nothing_left(engine: AsyncLLM) -> None:
    await until(lambda: not kept(engine))
    await check_books(engine)


class TestAnswers:
    def test_there_is_one_output_under_the_users_id(self, plugins, make_engine):
        install(plugins)

        async def main() -> None:
            engine = make_engine()
            output = await answer(engine, "She had|He was", request_id="mine")
            assert (output.request_id, output.outputs[0], output.finished) == ("mine", "She had|He was", True)
            assert len(output.outputs[1]) == 2
            await check_nothing_left(engine)

        run(main)

    def test_concurrent_requests_keep_their_own_state(self, plugins, make_engine):
        install(plugins)
        texts = [f"The {number}th man|She|He was {number}" for number in range(30)]

        async def main() -> None:
            engine = make_engine(max_num_seqs=8)
            alone = [(await answer(engine, text)).outputs for text in texts[:3]]
            outputs = await asyncio.gather(*(answer(engine, text) for text in texts))
            assert [output.outputs[0] for output in outputs] == texts
            assert [output.outputs for output in outputs[:3]] == alone
            assert len({output.request_id for output in outputs}) == len(texts)
            await check_nothing_left(engine)

        run(main)

    def test_a_processor_gets_whole_outputs_also_where_what_is_new_was_asked_for(self, plugins, make_engine):
        install(plugins)

        async def main() -> None:
            engine = make_engine()
            whole = await answer(engine, "She had|He was")
            params = SamplingParams(output_kind=RequestOutputKind.DELTA)
            output = await answer(engine, "She had|He was", params)
            assert output.outputs == whole.outputs

        run(main)

    def test_methods_that_are_not_async_run_beside_the_loop(self, plugins, make_engine):
        body = "".join(
            f"    def {method}(self, *args, **kwargs):\n"
            "        CALLS.append(threading.current_thread().name)\n"
            f"        return Base.{method}(self, *args, **kwargs)\n"
            for method in ("parse_data", "pre_process", "merge_sampling_params", "post_process")
        )
        install(plugins, body="\nBase = Processor\nclass Processor(Base):\n" + body)

        async def main() -> None:
            assert (await answer(make_engine(), "She had")).outputs[0] == "She had"

        run(main)
        from split_io_module import CALLS

        assert len(CALLS) == 4
        assert all(name.startswith("vllm_ext-io-processor") for name in CALLS)

    def test_methods_that_are_async_run_in_the_loop(self, plugins, make_engine):
        body = (
            "    async def pre_process_async(self, prompt, request_id=None, **kwargs):\n"
            "        CALLS.append((threading.current_thread(), request_id))\n"
            "        return self.pre_process(prompt.upper(), request_id)\n"
            "    async def post_process_async(self, outputs, request_id=None, **kwargs):\n"
            "        CALLS.append((threading.current_thread(), request_id))\n"
            "        return [output.prompt for output in outputs], self.post_process(outputs, request_id)[0]\n"
        )
        install(plugins, body=body)

        async def main() -> None:
            engine = make_engine()
            output = await answer(engine, "She had|He was")
            assert output.outputs == (["SHE HAD", "HE WAS"], "SHE HAD|HE WAS")
            await check_nothing_left(engine)

        run(main)
        from split_io_module import CALLS

        assert [thread for thread, _ in CALLS] == [threading.current_thread()] * 2
        assert len({request_id for _, request_id in CALLS}) == 1

    def test_a_slow_processor_holds_up_no_other_request(self, plugins, make_engine):
        body = "    def pre_process(self, prompt, request_id=None):\n        GATE.wait(120)\n        return prompt\n"
        install(plugins, body="    GATE = threading.Event()\n" + body.replace("GATE", "self.GATE"))

        async def main() -> None:
            engine = make_engine()
            waiting = asyncio.ensure_future(answer(engine, "She had"))
            assert len(await tokens_of(engine, "He was", SamplingParams(temperature=0, max_tokens=5))) == 5
            assert not waiting.done()
            type(engine._data_requests._requests.processor).GATE.set()
            with pytest.raises(PluginError, match="KeyError"):  # nothing was kept
                await waiting

        run(main)

    def test_they_work_with_an_engine_core_in_a_process(self, plugins, make_engine):
        install(plugins)

        async def main() -> None:
            engine = make_engine(core_process=True)
            assert (await answer(engine, "She had|He was")).outputs[0] == "She had|He was"

        run(main)


class TestIds:
    def test_an_id_in_flight_is_refused_whatever_it_belongs_to(self, plugins, make_engine):
        install(plugins, body=PARAMS)

        async def main() -> None:
            engine = make_engine()
            first = asyncio.ensure_future(answer(engine, "She had", LONG, "mine"))
            await until(lambda: kept(engine))
            for prompt in ({"data": "He was"}, "He was"):
                with pytest.raises(InvalidRequest, match="a request with the id 'mine' is in flight"):
                    await anext(engine.generate(prompt, LONG, "mine"))
            assert (await first).outputs[0] == "She had"
            await check_nothing_left(engine)

        run(main)

    def test_an_id_can_be_used_again_at_once_after_an_abort(self, plugins, make_engine):
        install(plugins, body=PARAMS)

        async def main() -> None:
            engine = make_engine()
            for _ in range(5):
                first = asyncio.ensure_future(answer(engine, "She had", LONG, "mine"))
                await until(lambda: kept(engine))
                await engine.abort("mine")
                second = await answer(engine, "He was", SamplingParams(max_tokens=2), "mine")
                assert second.outputs[0] == "He was"
                with pytest.raises(EngineError, match="request 'mine' was aborted"):
                    await first
                await check_nothing_left(engine)

        run(main)


class TestTheEnd:
    def test_a_request_that_is_aborted_is_forgotten_by_all(self, plugins, make_engine):
        install(plugins, body=PARAMS)

        async def main() -> None:
            engine = make_engine()
            task = asyncio.ensure_future(answer(engine, "She had|He was|It", LONG, "mine"))
            while (await engine.get_stats()).num_running_reqs < 3:
                await asyncio.sleep(0.002)
            await engine.abort("mine")
            with pytest.raises(EngineError, match="request 'mine' was aborted"):
                await task
            await check_nothing_left(engine)

        run(main)

    def test_a_task_that_is_cancelled_ends_all_prompts_of_its_request(self, plugins, make_engine):
        install(plugins, body=PARAMS)

        async def main() -> None:
            engine = make_engine()
            task = asyncio.ensure_future(answer(engine, "She had|He was|It", LONG))
            while (await engine.get_stats()).num_running_reqs < 3:
                await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await check_nothing_left(engine)

        run(main)

    def test_one_that_is_cancelled_while_the_processor_works_is_forgotten_after_it(self, plugins, make_engine):
        install(plugins, body=gated("self.kept[request_id] = prompt", "CALLS.append(dict(self.kept))"))

        async def main() -> None:
            engine = make_engine()
            task = asyncio.ensure_future(answer(engine, "She had"))
            from split_io_module import CALLS

            await until(lambda: CALLS)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            type(engine._data_requests._requests.processor).GATE.set()
            await until(lambda: len(CALLS) == 2)
            assert CALLS[1] == {CALLS[0]: "She had"}
            await check_nothing_left(engine)

        run(main)

    def test_the_end_of_the_engine_is_told_to_who_waits(self, plugins, make_engine):
        install(plugins, body=PARAMS)

        async def main() -> None:
            engine = make_engine()
            processor = engine._data_requests._requests.processor
            task = asyncio.ensure_future(answer(engine, "She had|He was", LONG))
            await until(lambda: processor.kept)
            async with engine:
                pass
            with pytest.raises(EngineError, match="this engine is shut down"):
                await task
            assert processor.kept == {}
            with pytest.raises(EngineError, match="this engine is shut down"):
                await answer(engine, "She had")

        run(main)

    def test_one_whose_processor_has_more_to_do_when_the_engine_has_ended_is_told_so(self, plugins, make_engine):
        install(plugins, body=gated())

        async def main() -> None:
            engine = make_engine()
            requests = engine._data_requests
            task = asyncio.ensure_future(answer(engine, "She had"))
            from split_io_module import CALLS

            await until(lambda: CALLS)
            requests._requests.processor.GATE.set()
            # The loop stands still until its thread is done with that, and takes nothing more.
            requests._pool.submit(int).result()
            ending = threading.Thread(target=engine.shutdown)
            ending.start()
            assert wait_until(lambda: requests._pool._shutdown)
            with pytest.raises(EngineError, match="this engine is shut down"):
                await task
            await asyncio.to_thread(ending.join)

        run(main)

    def test_what_the_processor_is_at_when_the_engine_ends_is_forgotten_after_it(self, plugins, make_engine):
        install(plugins, body=gated("self.kept[request_id] = prompt"))

        async def main() -> None:
            engine = make_engine()
            processor = engine._data_requests._requests.processor
            task = asyncio.ensure_future(answer(engine, "She had"))
            from split_io_module import CALLS

            await until(lambda: CALLS)
            ending = threading.Thread(target=engine.shutdown)
            ending.start()
            # The loop stands still until the processor's thread takes nothing more.
            assert wait_until(lambda: engine._data_requests._pool._shutdown)
            with pytest.raises(EngineError, match="this engine is shut down"):
                await task
            processor.GATE.set()
            await asyncio.to_thread(ending.join)
            assert processor.kept == {}

        run(main)


class TestFaults:
    @pytest.mark.parametrize(
        "method",
        [
            "def parse_data(self, data)",
            "def merge_sampling_params(self, params=None)",
            "def pre_process(self, prompt, request_id=None)",
            "def post_process(self, outputs, request_id=None)",
            "async def pre_process_async(self, prompt, request_id=None)",
            "async def post_process_async(self, outputs, request_id=None)",
        ],
        ids=lambda method: method.partition("(")[0].rpartition(" ")[2],
    )
    @pytest.mark.parametrize("error", ["KeyError('colour')", "SystemExit(3)", "BaseException()", "StopIteration()"])
    def test_one_that_raises_names_plugin_and_method_and_others_go_on(self, plugins, make_engine, method, error):
        install(plugins, body=f"    {method}: raise {error}\n")
        name = method.partition("(")[0].rpartition(" ")[2]

        async def main() -> None:
            engine = make_engine()
            other = asyncio.ensure_future(tokens_of(engine, "He was", SamplingParams(temperature=0, max_tokens=9)))
            with pytest.raises(PluginError, match=rf"^{SOURCE} failed in {name}\(\): "):
                await answer(engine, "She had|It")
            assert len(await other) == 9
            await check_nothing_left(engine)

        run(main)

    @pytest.mark.parametrize("method", ["def pre_process", "async def pre_process_async"])
    def test_a_value_error_before_the_model_refuses_the_request(self, plugins, make_engine, method):
        install(plugins, body=f"    {method}(self, prompt, request_id=None): raise ValueError('no colours')\n")

        async def main() -> None:
            with pytest.raises(InvalidRequest, match=rf"^{SOURCE} refuses the request: no colours"):
                await answer(make_engine(), "She had")

        run(main)

    def test_one_prompt_that_is_refused_ends_the_others_of_its_request(self, plugins, make_engine):
        install(plugins, body=PARAMS)

        async def main() -> None:
            engine = make_engine()
            with pytest.raises(InvalidRequest, match=rf"^{SOURCE} made a prompt that is refused: the prompt is empty"):
                await answer(engine, "She had||He was", LONG)
            await check_nothing_left(engine)

        run(main)

    def test_one_that_cancels_its_own_task_is_a_failure_and_no_cancellation(self, plugins, make_engine):
        body = (
            "    async def pre_process_async(self, prompt, request_id=None):\n"
            "        import asyncio\n"
            "        raise asyncio.CancelledError\n"
        )
        install(plugins, body=body)

        async def main() -> None:
            with pytest.raises(PluginError, match="the IO processor cancelled the task of request 'mine'"):
                await answer(make_engine(), "She had", None, "mine")

        run(main)

    def test_an_engine_whose_processor_cannot_be_made_leaves_no_thread(self, plugins, make_engine):
        install(plugins, body="    def __init__(self, vllm_config, renderer): raise OSError('no table')\n")

        with pytest.raises(PluginError, match=r"failed in __init__\(\): OSError: no table"):
            make_engine()
        assert own_threads() == []


class TestRandomOrder:
    BODY = (
        "    def parse_data(self, data):\n"
        "        if data.startswith('refuse'): raise ValueError('refused')\n"
        "        return data\n"
        "    def pre_process(self, prompt, request_id=None):\n"
        "        self.kept[request_id] = prompt\n"
        "        if prompt.startswith('pre'): raise KeyError('pre')\n"
        "        return prompt.split('|')\n"
        "    def post_process(self, outputs, request_id=None):\n"
        "        if self.kept[request_id].startswith('post'): raise KeyError('post')\n"
        "        return self.kept.pop(request_id), [output.prompt for output in outputs]\n"
    )

    @pytest.mark.parametrize("seed", range(3))
    def test_whatever_ends_a_request_each_gets_its_own_and_nothing_is_left(self, plugins, make_engine, seed):
        install(plugins, body=self.BODY)
        draw = random.Random(seed)
        seen: Counter[str] = Counter()

        async def one(engine: AsyncLLM, number: int) -> None:
            what = draw.choice(["answer", "answer", "refuse", "pre", "post", "cancel", "abort"])
            text = "|".join(f"{what} {number} {part}" for part in range(draw.randint(1, 5)))
            await asyncio.sleep(draw.random() * 0.3)
            task = asyncio.ensure_future(answer(engine, text, request_id=str(number)))
            if what in ("cancel", "abort"):
                await asyncio.sleep(draw.random() * 0.05)
                task.cancel() if what == "cancel" else await engine.abort(str(number))
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, PoolingRequestOutput):
                assert (result.request_id, result.outputs) == (str(number), (text, text.split("|")))
                assert what not in FAULTS
                seen["answered"] += 1
            else:
                wanted = {"cancel": asyncio.CancelledError, "abort": EngineError} | FAULTS
                assert type(result) is wanted[what], result
                seen[what] += 1

        async def main() -> None:
            engine = make_engine(max_num_seqs=6)
            await asyncio.gather(*(one(engine, number) for number in range(80)))
            await check_nothing_left(engine)

        run(main)
        assert {"answered", "refuse", "pre", "post", "cancel", "abort"} <= set(seen)
