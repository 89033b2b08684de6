"""Calls of worker methods by users: between two steps, with what went wrong said of which worker and which method."""

from __future__ import annotations

import asyncio
import threading

import pytest
from support.fake_engine import FakeWorker

from vllm_ext import AsyncLLM
from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.errors import ContractError, EngineError


class Echo(FakeWorker):
    def echo(self, *args, **kwargs):
        return args, kwargs

    def where(self):
        return threading.current_thread().name, current_platform.get().device_name

    def fail(self):
        raise ZeroDivisionError("in the kernel")

    def thing(self):
        return object()


def test_a_method_is_called_by_name_with_arguments(make_llm):
    llm = make_llm(worker_cls=Echo)

    assert llm.collective_rpc("echo", None, (1,), {"b": 2}) == [((1,), {"b": 2})]
    assert llm.collective_rpc("echo", timeout=5.0) == [((), {})]


def test_a_function_gets_the_worker_before_its_arguments(make_llm):
    llm = make_llm(worker_cls=Echo)

    assert llm.collective_rpc(lambda worker, x, *, y: (type(worker), x, y), args=(1,), kwargs={"y": 2}) == [
        (Echo, 1, 2)
    ]


def test_it_runs_on_the_engines_platform(make_llm):
    assert make_llm(worker_cls=Echo).collective_rpc("where")[0][1] == "fake"


def test_a_method_that_there_is_not_is_named_with_the_nearest_one(make_llm):
    with pytest.raises(
        ContractError,
        match=r"worker .*Echo of platform 'fake' has no method 'check_helth' \(did you mean 'check_health'\?\); "
        r"worker.extension_cls can add it",
    ):
        make_llm(worker_cls=Echo).collective_rpc("check_helth")


def test_what_a_method_raises_is_the_cause_of_an_error_that_names_worker_and_method(make_llm):
    llm = make_llm(worker_cls=Echo)
    llm.llm_engine.vllm_config.parallel_config.worker_cls = "some.Worker"

    with pytest.raises(
        EngineError, match=r"worker some.Worker of platform 'fake' failed in fail\(\): ZeroDivisionError: in the k"
    ) as caught:
        llm.collective_rpc("fail")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_function_that_fails_is_named_as_well(make_llm):
    def named(worker):
        raise KeyError("x")

    with pytest.raises(EngineError, match=r"failed in .*named\(\): KeyError"):
        make_llm().collective_rpc(named)


def test_a_function_that_looks_for_one_more_of_nothing_is_named_as_well(make_llm):
    def named(worker):
        return next(iter([]))

    with pytest.raises(EngineError, match=r"failed in .*named\(\): StopIteration"):
        make_llm().collective_rpc(named)


def test_requests_in_flight_go_on_after_one_that_failed(make_llm):
    llm = make_llm(worker_cls=Echo)
    stream = llm.stream([1, 2, 3])
    next(stream)

    with pytest.raises(EngineError):
        llm.collective_rpc("fail")

    assert list(stream)[-1].finished


def test_a_model_can_be_looked_at(make_cpu_llm, random_llama):
    llm = make_cpu_llm(random_llama)

    assert llm.apply_model(lambda model: type(model).__name__) == ["LlamaForCausalLM"]
    assert "RMSNorm" in llm.collective_rpc("get_model_inspection")[0]
    assert llm.collective_rpc(lambda worker: worker.vocab_size) == [600]


def test_the_model_of_an_async_engine_can_be_looked_at(random_llama):
    async def main():
        async with AsyncLLM(random_llama, platform="cpu") as engine:
            return await engine.apply_model(lambda model: type(model).__name__)

    assert asyncio.run(main()) == ["LlamaForCausalLM"]


def test_an_engine_that_is_shut_down_is_not_called(make_llm):
    llm = make_llm()
    llm.close()

    with pytest.raises(EngineError, match="shut down"):
        llm.collective_rpc("check_health")


class TestAsync:
    def run(self, make_async_llm, body):
        engine = make_async_llm(worker_cls=Echo)

        async def main():
            async with engine:
                return await body(engine)

        return asyncio.run(main())

    def test_it_runs_in_the_engines_thread_and_what_comes_back_is_the_object_itself(self, make_async_llm):
        async def body(engine):
            return [
                await engine.collective_rpc("where"),
                await engine.collective_rpc("echo", args=(1,), kwargs={"b": 2}),
                await engine.collective_rpc(lambda worker: type(worker)),
                type((await engine.collective_rpc("thing"))[0]),
            ]

        assert self.run(make_async_llm, body) == [
            [("vllm_ext-engine-core", "fake")],
            [((1,), {"b": 2})],
            [Echo],
            object,
        ]

    def test_errors_name_worker_and_method(self, make_async_llm):
        async def body(engine):
            engine.vllm_config.parallel_config.worker_cls = "some.Worker"
            with pytest.raises(
                EngineError,
                match=r"worker some.Worker of platform 'fake' failed in fail\(\): ZeroDivisionError: in the",
            ):
                await engine.collective_rpc("fail")
            with pytest.raises(EngineError, match="worker .*Echo of platform 'fake' has no method 'absent'"):
                await engine.collective_rpc("absent")
            return await engine.collective_rpc("echo")

        assert self.run(make_async_llm, body) == [((), {})]

    def test_a_function_that_looks_for_one_more_of_nothing_is_named_as_well(self, make_async_llm):
        """No future takes a StopIteration."""

        async def body(engine):
            with pytest.raises(EngineError, match=r"failed in .*<lambda>\(\): StopIteration"):
                await engine.collective_rpc(lambda worker: next(iter([])))
            return await engine.collective_rpc("echo")

        assert self.run(make_async_llm, body) == [((), {})]

    def test_calls_of_many_tasks_come_between_steps(self, make_async_llm):
        async def body(engine):
            async def count():
                return await engine.collective_rpc(lambda worker: len(worker.steps))

            async def serve():
                return [output async for output in engine.generate([1, 2, 3])][-1].finished

            return await asyncio.gather(serve(), *(count() for _ in range(20)), serve())

        first, *counts, last = self.run(make_async_llm, body)
        assert (first, last) == (True, True)
        assert len(counts) == 20

    def test_a_call_that_takes_too_long_is_given_up_waiting_for(self, make_async_llm):
        done = threading.Event()

        async def body(engine):
            with pytest.raises(EngineError, match=r"did not answer 'shutdown' within|within 0.05 s"):
                await engine.collective_rpc(lambda worker: done.wait(60), timeout=0.05)
            done.set()
            return await engine.collective_rpc("echo")

        assert self.run(make_async_llm, body) == [((), {})]


@pytest.mark.parametrize("is_async", [False, True])
def test_workers_are_told_when_the_prefix_cache_is_reset(make_llm, make_async_llm, is_async):
    told = []

    def prepare(worker):
        worker.reset_prefix_cache = lambda: told.append(1)

    if is_async:
        engine = make_async_llm(prepare)
        assert asyncio.run(engine.reset_prefix_cache())
    else:
        llm = make_llm(prepare=prepare)
        stream = llm.stream([1, 2, 3])
        next(stream)
        assert not llm.reset_prefix_cache()
        assert told == [], "nothing was reset"
        stream.close()
        assert llm.reset_prefix_cache()

    assert told == [1]
