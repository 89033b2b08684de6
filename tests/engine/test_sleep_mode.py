"""Sleep mode: memory is given back and taken again, and whoever is served meanwhile gets the tokens of an engine that
never slept.
"""

from __future__ import annotations

import asyncio
import shutil
import weakref

import pytest
from safetensors.torch import load_file, save_file
from support.async_engine import StepGate, all_sent, collect, greedy, run, until
from support.fake_engine import FakeWorker, continuation
from support.stats import Kept

from vllm_ext import LLM, SamplingParams
from vllm_ext.errors import ConfigError, ContractError, EngineError, InvalidRequest, VllmExtError

PROMPTS = [[5, 6, 7], [8, 9], [10] * 40]


def tokens_of(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, greedy(8))]


def caches_of(model) -> list[weakref.ref]:
    return [weakref.ref(module.kv_cache) for module in model.modules() if hasattr(module, "kv_cache")]


def weights_of(model) -> list[weakref.ref]:
    return [weakref.ref(parameter) for parameter in model.parameters()]


@pytest.fixture(scope="module")
def llm(random_llama):
    with LLM(random_llama, dtype="float32", platform="cpu", enable_sleep_mode=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm):
    return tokens_of(llm)


class TestMemory:
    @pytest.mark.parametrize("level", [0, 1, 2])
    def test_it_goes_on_as_before(self, llm, expected, level):
        (caches,), (weights,) = llm.apply_model(caches_of), llm.apply_model(weights_of)
        assert caches
        assert weights

        llm.sleep(level)

        assert llm.is_sleeping()
        assert {cache() is None for cache in caches} == {level >= 1}
        assert {weight() is None for weight in weights} == {level == 2}
        llm.wake_up()
        assert not llm.is_sleeping()
        assert tokens_of(llm) == expected

    def test_what_was_cached_is_gone_above_level_0(self, llm, expected):
        def num_cached() -> int:
            return llm.generate([PROMPTS[2]], greedy(1))[0].num_cached_tokens

        num_cached()
        llm.sleep(0)
        llm.wake_up()
        assert num_cached() == 32
        llm.sleep(1)
        llm.wake_up()
        assert num_cached() == 0

    def test_memory_can_be_taken_kind_by_kind(self, llm, expected):
        llm.sleep(2)
        with pytest.raises(EngineError, match="the weights sleep; they are woken up before the KV cache"):
            llm.wake_up(["kv_cache"])
        assert llm.wake_up(["weights"]) is False
        assert llm.is_sleeping()
        assert llm.wake_up(["kv_cache"]) is True
        assert not llm.is_sleeping()

        assert tokens_of(llm) == expected

    def test_steps_alone_cannot_go_on_without_memory(self, llm):
        llm.sleep(1)
        llm.wake_up(["scheduling"])

        assert llm.is_sleeping()
        llm.wake_up()

    def test_who_sleeps_does_not_fall_asleep_again(self, llm, expected, caplog):
        llm.sleep(1)
        llm.sleep(2)

        assert "the engine sleeps already" in caplog.text
        llm.wake_up()
        assert tokens_of(llm) == expected

    def test_who_is_awake_need_not_be_woken_up(self, llm, caplog):
        llm.wake_up(["weights"])

        assert "nothing of what is to be woken up sleeps: weights" in caplog.text

    def test_a_request_would_wait_for_ever(self, llm):
        llm.sleep(0)

        with pytest.raises(EngineError, match="the engine sleeps, and nobody would compute a request; wake_up"):
            tokens_of(llm)
        llm.wake_up()

    def test_there_is_no_model_to_look_at_at_level_2(self, llm):
        llm.sleep(2)

        with pytest.raises(EngineError, match=r"the worker sleeps, and its weights are not there"):
            llm.apply_model(weights_of)
        llm.wake_up()

    @pytest.mark.parametrize(
        ("call", "text"),
        [
            (lambda llm: llm.sleep(3), "level is 3; it takes an integer, from 0 to 2"),
            (
                lambda llm: llm.sleep(1, "keep"),
                "mode is 'keep'; it takes 'abort'; others than 'abort' are for Async",
            ),
            (lambda llm: llm.wake_up("weights"), "tags is 'weights'; it takes a list of names, or None"),
        ],
    )
    def test_wrong_arguments_change_nothing(self, llm, call, text):
        with pytest.raises(InvalidRequest, match=text):
            call(llm)
        assert not llm.is_sleeping()

    def test_a_name_that_nothing_has_wakes_nothing_up(self, llm):
        llm.sleep(1)

        with pytest.raises(InvalidRequest, match=r"tags has 'weight' \(did you mean 'weights'\?\); it takes weights"):
            llm.wake_up(["weight"])
        assert llm.is_sleeping()
        llm.wake_up()


def test_memory_is_only_given_back_where_that_was_asked_for(make_llm):
    llm = make_llm()

    with pytest.raises(ConfigError, match=r"sleep\(\) of level 1 .* engine.enable_sleep_mode is false; set it to true"):
        llm.sleep()
    assert not llm.is_sleeping()
    llm.sleep(0)
    llm.wake_up()
    assert llm.generate([[1]], greedy(3))[0].outputs[0].token_ids == continuation([1], 3)


def test_a_worker_without_it_is_told_so_at_the_start(make_llm):
    class Wakeful(FakeWorker):
        sleep = FakeWorker.__mro__[1].sleep

    with pytest.raises(ContractError, match="Wakeful of platform 'fake' does not implement: sleep"):
        make_llm(worker_cls=Wakeful, enable_sleep_mode=True)
    assert make_llm(worker_cls=Wakeful)


def test_a_worker_that_fails_at_it_can_be_woken_up(make_llm):
    def prepare(worker: FakeWorker) -> None:
        sleep = worker.sleep

        def fails(level: int) -> None:
            worker.sleep = sleep
            sleep(level)
            raise ValueError("bad dreams")

        worker.sleep = fails

    llm = make_llm(prepare=prepare, enable_sleep_mode=True)

    with pytest.raises(EngineError, match=r"of platform 'fake' failed in sleep\(\): ValueError: bad dreams"):
        llm.sleep()
    assert llm.is_sleeping()
    llm.wake_up()
    assert llm.generate([[1]], greedy(3))[0].outputs[0].token_ids == continuation([1], 3)


def test_weights_that_could_not_be_loaded_again_can_be_when_they_are_there(make_cpu_llm, random_llama, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(random_llama, model)
    llm = make_cpu_llm(model, enable_sleep_mode=True)
    expected = tokens_of(llm)
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    llm.sleep(2)

    # One tensor is not there, which is found out when the model has been built.
    tensors = load_file(weights)
    weights.unlink()
    save_file({name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}, weights)
    with pytest.raises(VllmExtError, match=r"model\.norm\.weight"):
        llm.wake_up()
    assert llm.is_sleeping()
    weights.write_bytes(content)
    assert llm.wake_up() is True

    assert tokens_of(llm) == expected


def test_a_call_that_is_refused_ends_no_request(make_async_llm):
    gate = StepGate()
    engine = make_async_llm(gate)

    async def main() -> None:
        task = asyncio.create_task(collect(engine, [1], greedy(5)))
        await all_sent(engine, 1)
        gate.open()
        with pytest.raises(EngineError, match="engine.enable_sleep_mode is false"):
            await engine.sleep()

        assert (await task)[-1].outputs[0].token_ids == continuation([1], 5)

    run(main)


def test_a_call_of_the_engine_itself_that_is_refused_ends_no_request(make_llm):
    llm = make_llm()
    llm.llm_engine.add_request("1", [1], greedy(3))

    with pytest.raises(ConfigError, match="engine.enable_sleep_mode is false"):
        llm.llm_engine.sleep()

    outputs = []
    while llm.llm_engine.has_unfinished_requests():
        outputs += llm.llm_engine.step()
    assert outputs[-1].outputs[0].token_ids == continuation([1], 3)


def test_stat_loggers_are_told_of_what_sleeps_and_not_of_what_was_asked_for(make_llm):
    kept = Kept()
    llm = make_llm(stat_logger_factories=[kept.make], enable_sleep_mode=True)

    llm.sleep(0)
    llm.sleep(2)
    llm.sleep(1)
    llm.sleep(0)
    llm.close()

    assert kept.sleep_states == [(1, 0), (1, 2)]


def test_stat_loggers_are_told(make_llm):
    kept = Kept()
    llm = make_llm(stat_logger_factories=[kept.make], enable_sleep_mode=True)

    llm.sleep(2)
    llm.wake_up(["weights"])
    llm.wake_up(["kv_cache"])
    llm.sleep(0)
    llm.close()

    assert kept.sleep_states == [(1, 2), (0, 0), (1, 0)]


class TestRequestsInFlight:
    @pytest.mark.parametrize("level", [0, 1, 2])
    def test_kept_ones_go_on_where_they_were(self, make_async_llm, level):
        gate = StepGate()
        engine = make_async_llm(gate, enable_sleep_mode=True)

        async def main() -> None:
            tasks = [asyncio.create_task(collect(engine, [i, i + 1, i + 2], greedy(20))) for i in range(3)]
            await all_sent(engine, 3)
            await gate.make_steps(4)
            gate.open()
            await engine.sleep(level, mode="keep")
            steps = len(engine.worker.steps)
            late = asyncio.create_task(collect(engine, [9], greedy(5)))
            await engine.check_health()
            assert await engine.is_sleeping()
            assert len(engine.worker.steps) == steps
            assert not any(task.done() for task in tasks)
            await engine.wake_up()

            for i, task in enumerate(tasks):
                assert (await task)[-1].outputs[0].token_ids == continuation([i, i + 1, i + 2], 20)
            assert (await late)[-1].outputs[0].token_ids == continuation([9], 5)
            assert (await engine.get_stats()).num_preemptions == (3 if level else 0)

        run(main)

    def test_others_end_with_what_they_have(self, make_async_llm):
        gate = StepGate()
        engine = make_async_llm(gate, enable_sleep_mode=True)

        async def main() -> None:
            task = asyncio.create_task(collect(engine, [1], greedy(50)))
            await gate.make_steps(3)
            await until(lambda: gate.is_holding)
            gate.open()
            await engine.sleep()

            (*_, last) = await task
            assert last.outputs[0].finish_reason == "abort"
            assert last.outputs[0].token_ids == continuation([1], len(last.outputs[0].token_ids))
            await engine.wake_up()
            assert (await collect(engine, [1], greedy(5)))[-1].outputs[0].token_ids == continuation([1], 5)

        run(main)

    def test_a_sleeping_engine_can_be_shut_down(self, make_async_llm):
        engine = make_async_llm(enable_sleep_mode=True)

        async def main() -> None:
            async with engine:
                await engine.sleep()
                task = asyncio.create_task(collect(engine, [1], greedy(5)))
                await asyncio.sleep(0)
            with pytest.raises(EngineError, match="shut down"):
                await task

        run(main)

    def test_wrong_arguments_are_refused(self, make_async_llm):
        engine = make_async_llm()

        async def main() -> None:
            with pytest.raises(InvalidRequest, match="mode is 'wait'; it takes 'abort' or 'keep'"):
                await engine.sleep(0, "wait")
            with pytest.raises(EngineError, match="engine.enable_sleep_mode is false"):
                await engine.sleep()
            with pytest.raises(EngineError, match="tags has 'weight'"):
                await engine.wake_up(["weight"])

        run(main)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2"])
def test_a_model_of_transformers_sleeps_too(make_cpu_llm, tmp_path, family):
    from support.families import ADAPTED, write_model

    llm = make_cpu_llm(write_model(tmp_path / family, ADAPTED[family]), enable_sleep_mode=True)
    expected = tokens_of(llm)

    llm.sleep(2)
    llm.wake_up()

    assert tokens_of(llm) == expected


def test_prompt_logprobs_that_are_interrupted_are_whole(random_llama):
    from vllm_ext import AsyncLLM

    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1)
    prompt = list(range(5, 205))

    async def main() -> None:
        settings = {"dtype": "float32", "platform": "cpu", "max_num_batched_tokens": 16, "max_num_seqs": 4}
        async with AsyncLLM(random_llama, enable_sleep_mode=True, **settings) as engine:
            (*_, whole) = await collect(engine, prompt, params)
            task = asyncio.create_task(collect(engine, prompt, params))
            while not (await engine.get_stats()).num_running_reqs:
                pass
            await engine.sleep(2, mode="keep")
            assert not task.done()
            await engine.wake_up()

            (*_, last) = await task
            assert last.prompt_logprobs == whole.prompt_logprobs
            assert (await engine.get_stats()).num_preemptions == 1

    run(main)
