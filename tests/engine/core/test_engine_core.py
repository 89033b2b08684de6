"""The engine core and its executor: start-up, failures, the end."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from support.fake_engine import (
    BYTES_PER_BLOCK_TOKEN,
    FakeDispatcher,
    FakePlatform,
    FakeWorker,
    continuation,
    make_vllm_config,
)

from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.contracts.kv_cache import KVCacheLayout
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.vllm_config import get_current_vllm_config
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.scheduling.request import Request
from vllm_ext.errors import CheckpointError, ContractError, EngineError, PluginLoadError


@pytest.fixture
def make_core():
    """Makes an engine core and its worker; the blocks of the cores are counted at the end of the test."""
    cores = []

    def make(worker_cls=FakeWorker, prepare=lambda worker: None, **options):
        dispatcher = FakeDispatcher(make_vllm_config(**options), worker_cls, prepare)
        cores.append(EngineCore(dispatcher))
        return cores[-1], dispatcher.worker

    yield make
    for core in cores:
        core.scheduler.check_integrity()


def make_request(request_id: str, max_tokens: int = 3) -> Request:
    return Request(request_id, [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=max_tokens))


def test_start_up_calls_the_worker_in_the_order_of_the_contract(make_core):
    _, worker = make_core()

    assert worker.calls == [
        "init_device",
        "load_model",
        "get_kv_cache_spec",
        "determine_available_memory",
        "initialize_from_config",
        "initialize_cache",
        "compile_or_warm_up_model",
    ]


def test_the_number_of_blocks_is_announced(make_core):
    core, worker = make_core(num_blocks=7)

    assert worker.kv_cache_config.num_blocks == 7
    assert core.vllm_config.cache_config.num_gpu_blocks == 7


def test_the_cache_has_a_layout_that_the_worker_can_read(make_core):
    class PickyWorker(FakeWorker):
        def get_supported_kv_cache_layouts(self):
            return [KVCacheLayout.LHBNC]

    _, worker = make_core(PickyWorker)

    assert worker.kv_cache_config.kv_cache_layout is KVCacheLayout.LHBNC


def test_layouts_may_be_named_as_vllms_backends_name_them(make_core):
    class NamingWorker(FakeWorker):
        def get_supported_kv_cache_layouts(self):
            return ["LHBNC"]

    _, worker = make_core(NamingWorker)

    assert worker.cache_config.kv_cache_layout is KVCacheLayout.LHBNC


def test_missing_worker_methods_are_named_all_at_once_before_any_is_called(make_core):
    class HalfAWorker(WorkerBase):
        def init_device(self):
            raise AssertionError("not to be called")

        def load_model(self, *, load_dummy_weights=False):
            raise AssertionError("not to be called")

    with pytest.raises(ContractError) as error:
        make_core(HalfAWorker)

    assert "HalfAWorker" in str(error.value)
    assert error.value.plugin == "platform 'fake'"
    missing = "get_kv_cache_spec, determine_available_memory, initialize_from_config, execute_model"
    assert f"does not implement: {missing}." in str(error.value)


def test_a_misspelt_worker_method_is_named_beside_the_right_one(make_core):
    class Misspelt(FakeWorker):
        execute_model = WorkerBase.execute_model

        def execute_models(self, scheduler_output):
            raise AssertionError("not to be called")

    with pytest.raises(ContractError, match=r"does not implement: execute_model \(it has 'execute_models'\)\."):
        make_core(Misspelt)


class AnnouncesASecondPhase(FakeWorker):
    announces = False

    def execute_model(self, scheduler_output) -> ModelRunnerOutput | None:
        return None if self.announces else super().execute_model(scheduler_output)


def test_a_worker_that_may_need_a_second_phase_and_has_none_is_warned_about_before_the_first_step(make_core, caplog):
    core, _ = make_core(AnnouncesASecondPhase)

    assert "AnnouncesASecondPhase of platform 'fake' does not implement sample_tokens(), which follows" in caplog.text
    core.add_request(make_request("a", 1))
    assert core.step()
    core.step()


def test_a_second_phase_that_is_announced_and_missing_is_named(make_core):
    core, worker = make_core(AnnouncesASecondPhase)
    worker.announces = True
    core.add_request(make_request("a"))

    with pytest.raises(EngineError, match=r"AnnouncesASecondPhase does not implement sample_tokens\(\)"):
        core.step()


def test_warming_up_has_to_return_its_seconds(make_core):
    class Forgetful(FakeWorker):
        def compile_or_warm_up_model(self):
            return None

    with pytest.raises(ContractError, match=r"compile_or_warm_up_model\(\) of the worker returned None; it has to ret"):
        make_core(Forgetful)


def test_a_model_that_does_not_generate_is_refused(make_core):
    class Pooling(FakeWorker):
        def get_supported_tasks(self):
            return ("embed", "classify")

    with pytest.raises(EngineError, match="supports the tasks classify, embed for this model, and this engine is for"):
        make_core(Pooling)


@pytest.mark.parametrize("kind", [set, list, frozenset])
def test_names_of_what_a_worker_can_do_may_come_in_any_collection(make_core, kind):
    class Collecting(FakeWorker):
        def get_supported_sampling_params(self):
            return kind(["temperature", "seed"])

        def get_supported_tasks(self):
            return kind(["generate"])

    core, _ = make_core(Collecting)

    assert core.capabilities.sampling_params == {"temperature", "seed"}
    assert core.capabilities.tasks == ("generate",)


@pytest.mark.parametrize("method", ["get_supported_sampling_params", "get_supported_tasks"])
@pytest.mark.parametrize("returned", ["generate", None, [1]])
def test_what_are_no_names_is_an_error_with_the_method_and_the_worker(method, returned):
    def prepare(worker):
        setattr(worker, method, lambda: returned)

    message = f"{method}() of worker some.Worker returned {returned!r}; it has to return names"
    with pytest.raises(ContractError, match=re.escape(message)):
        EngineCore(make_dispatcher_of("some.Worker", prepare))


@pytest.mark.parametrize("convert", [float, np.float64, np.int64, torch.tensor])
def test_the_memory_that_a_worker_has_may_be_any_number(make_core, convert):
    class Measuring(FakeWorker):
        def determine_available_memory(self):
            return convert(20 * 4 * BYTES_PER_BLOCK_TOKEN)

    core, _ = make_core(Measuring, block_size=4)

    assert repr(core.kv_cache_config.num_blocks) == "20"


@pytest.mark.parametrize("returned", [None, "1000000", float("nan"), float("inf")])
def test_memory_that_is_no_number_is_an_error_with_the_worker(returned):
    def prepare(worker):
        worker.determine_available_memory = lambda: returned

    message = f"determine_available_memory() of worker some.Worker returned {returned!r}; it has to return the number"
    with pytest.raises(EngineError, match=re.escape(message)):
        EngineCore(make_dispatcher_of("some.Worker", prepare))


def test_the_layout_is_told_to_the_worker_before_its_memory_is_measured(make_core):
    class Told(FakeWorker):
        def set_kv_cache_layout(self, layout):
            self.calls.append("set_kv_cache_layout")
            super().set_kv_cache_layout(layout)

    core, worker = make_core(Told)

    assert worker.calls.index("set_kv_cache_layout") == worker.calls.index("determine_available_memory") - 1
    assert core.vllm_config.cache_config.kv_cache_layout is worker.kv_cache_config.kv_cache_layout


def test_the_older_spelling_of_the_cache_starts_an_engine(make_core):
    class Older(FakeWorker):
        get_kv_cache_spec = WorkerBase.get_kv_cache_spec

        def get_kv_cache_spaces(self):
            return FakeWorker.get_kv_cache_spec(self)

    with pytest.warns(DeprecationWarning, match=r"Older implements get_kv_cache_spaces\(\)"):
        _, worker = make_core(Older)

    assert len(worker.kv_cache_config.kv_cache_groups[0].layer_names) == 2


def test_a_platform_that_cannot_register_its_kinds_of_cache_is_named(make_core):
    class Broken(FakePlatform):
        @classmethod
        def register_custom_kv_cache_specs(cls, vllm_config):
            raise RuntimeError("no such kind")

    with pytest.raises(PluginLoadError, match="platform 'fake' .*Broken.* failed: RuntimeError: no such kind"):
        EngineCore(FakeDispatcher(make_vllm_config(), platform=Broken()))


@pytest.mark.parametrize("kind", [ValueError, BaseException])
@pytest.mark.parametrize("method", ["init_device", "load_model", "determine_available_memory"])
def test_a_worker_that_fails_at_start_up_is_named_and_shut_down(method, kind):
    workers = []

    def prepare(worker):
        def fail(*args, **kwargs):
            raise kind("no such device")

        workers.append(worker)
        setattr(worker, method, fail)

    with pytest.raises(
        EngineError, match=f"worker some.Worker of platform 'fake' failed to .*: {kind.__name__}: no such device"
    ) as error:
        EngineCore(make_dispatcher_of("some.Worker", prepare))

    assert isinstance(error.value.__cause__, kind)
    assert workers[0].calls[-1] == "shutdown"


def test_a_worker_that_looks_for_one_more_of_nothing_is_named_like_any_other(make_core):
    def prepare(worker):
        worker.load_model = lambda: next(iter([]))

    with pytest.raises(
        EngineError, match="worker some.Worker of platform 'fake' failed to start: StopIteration"
    ) as error:
        EngineCore(make_dispatcher_of("some.Worker", prepare))

    assert isinstance(error.value.__cause__, StopIteration)


def make_dispatcher_of(worker_cls: str, prepare) -> FakeDispatcher:
    config = make_vllm_config()
    config.parallel_config.worker_cls = worker_cls
    return FakeDispatcher(config, prepare=prepare)


def test_a_worker_that_cannot_even_shut_down_does_not_hide_why_it_failed(make_core):
    def fail(text):
        def method(*args, **kwargs):
            raise ValueError(text)

        return method

    def prepare(worker):
        worker.init_device, worker.shutdown = fail("no such device"), fail("never opened")

    with pytest.raises(EngineError, match="no such device") as error:
        make_core(prepare=prepare)

    assert error.value.__cause__.__notes__ == ["Shutting down failed as well: ValueError: never opened"]


def test_an_error_that_explains_itself_comes_through_unchanged(make_core):
    original = CheckpointError("model.safetensors is truncated")

    def prepare(worker):
        def fail():
            raise original

        worker.load_model = fail

    with pytest.raises(CheckpointError) as error:
        make_core(prepare=prepare)

    assert error.value is original


def test_a_failed_step_ends_the_requests_in_flight_and_keeps_the_cause(make_core):
    core, worker = make_core()
    core.add_request(make_request("a", 50))
    core.add_request(make_request("b", 50))
    core.step()
    cause = ZeroDivisionError("in the kernel")

    def fail():
        raise cause

    worker.before_step = fail
    with pytest.raises(EngineError, match="ended the 2 requests in flight: ZeroDivisionError: in the kernel") as error:
        core.step()

    assert error.value.__cause__ is cause
    assert not core.scheduler.has_unfinished_requests()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_after_a_step_that_broke_off_new_requests_are_served(make_core, failure):
    core, worker = make_core()
    core.add_request(make_request("a", 50))
    core.step()

    def fail():
        worker.before_step = lambda: None
        raise failure

    worker.before_step = fail
    with pytest.raises((EngineError, KeyboardInterrupt)):
        core.step()
    core.add_request(make_request("b", 1))
    (output,) = core.step()

    assert output.new_token_ids == continuation([1, 2, 3], 1)
    assert worker.steps[-1].finished == {"a"}


def test_a_worker_hears_of_ended_requests_even_if_the_step_that_was_to_say_so_failed(make_core):
    core, worker = make_core()
    core.add_request(make_request("a", 1))
    core.step()

    def fail():
        worker.before_step = lambda: None
        raise ValueError

    worker.before_step = fail
    with pytest.raises(EngineError):
        core.step()
    core.step()

    assert worker.steps[-1].finished == {"a"}
    assert not core.has_requests()


def test_a_worker_may_complete_a_step_in_two_phases(make_core):
    class TwoPhaseWorker(FakeWorker):
        def execute_model(self, scheduler_output):
            self.result = super().execute_model(scheduler_output)
            return None if scheduler_output.total_num_scheduled_tokens else self.result

        def sample_tokens(self, grammar_output):
            return self.result

    core, _ = make_core(TwoPhaseWorker)
    core.add_request(make_request("a", 1))
    (output,) = core.step()

    assert output.new_token_ids == continuation([1, 2, 3], 1)


def test_each_of_two_engines_in_a_process_sees_its_own_platform_and_configuration_in_its_steps(make_core):
    seen = []
    cores = []
    for _ in range(2):
        core, worker = make_core()
        worker.before_step = lambda: seen.append((current_platform.get(), get_current_vllm_config()))
        core.add_request(make_request("a", 5))
        cores.append(core)
    for core in [*cores, *cores]:
        core.step()

    expected = [(core.executor.dispatcher.platform, core.vllm_config) for core in cores]
    assert [(id(p), id(c)) for p, c in seen] == [(id(p), id(c)) for p, c in expected * 2]
    assert isinstance(seen[0][0], FakePlatform)


def test_shutdown_stops_the_worker_once(make_core):
    core, worker = make_core()
    core.shutdown()
    core.shutdown()

    assert worker.calls.count("shutdown") == 1


def test_a_call_after_shutdown_says_so(make_core):
    core, _ = make_core()
    core.shutdown()

    with pytest.raises(EngineError, match="'check_health' was called on an engine that is shut down"):
        core.executor.check_health()


def test_a_function_can_be_run_on_the_worker(make_core):
    core, worker = make_core()

    assert core.executor.collective_rpc(lambda w, x, y: (w, x + y), args=(1,), kwargs={"y": 2}) == [(worker, 3)]
