"""The dispatcher builds what platform and settings name, and says who named what cannot be built."""

import pytest
import torch
from support.device import BACKEND_OF_CPU
from support.distributions import config

from vllm_ext import DeviceCommunicatorBase, PlatformEnum, WorkerBase
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.contracts.attention import AttentionBackend
from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.contracts.platform import AttentionSelectorConfig, UnspecifiedPlatform
from vllm_ext.contracts.vllm_config import get_current_vllm_config
from vllm_ext.dispatch.dispatcher import Dispatcher, get_current_dispatcher
from vllm_ext.errors import ConfigError, ContractError, PlatformUnavailable, PluginLoadError
from vllm_ext.managers import PlatformBinding
from vllm_ext.plan import resolve
from vllm_ext.platforms.cpu import CpuPlatform

LAYER = AttentionSelectorConfig(head_size=64, dtype=torch.float32, kv_cache_dtype="auto", block_size=16)


class Npu(CpuPlatform):
    _enum = PlatformEnum.OOT
    device_name = "npu"


class MyWorker(WorkerBase):
    pass


class MyCommunicator(DeviceCommunicatorBase):
    def __init__(self, **kwargs):
        self.kwargs = kwargs


class OldCommunicator(DeviceCommunicatorBase):
    def __init__(self, cpu_group, device=None, device_group=None, unique_name=""):
        super().__init__(cpu_group, device, device_group, unique_name)


class OddCommunicator(DeviceCommunicatorBase):
    def __init__(self, cpu_group, fabric, device=None, device_group=None):
        super().__init__(cpu_group, device, device_group)


class OnlyHalf(SDPABackend):
    supported_dtypes = ("float16",)

    @staticmethod
    def get_supported_head_sizes():
        return [32, 80]


def make(platform=Npu, **settings):
    chosen = config(**settings)
    return Dispatcher(PlatformBinding(resolve([], chosen).bind(None), platform()), chosen)


def path(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def worker(dispatcher):
    return dispatcher.worker_factory(local_rank=0, rank=0, distributed_init_method="", is_driver_worker=True)


def test_the_worker_is_the_platforms():
    built = worker(make())

    assert path(type(built)) == "vllm_ext.worker.worker.Worker"
    assert isinstance(built.current_platform, Npu)


def test_the_settings_can_name_another_worker():
    assert type(worker(make(worker__cls=path(MyWorker)))) is MyWorker


def test_a_platform_that_names_no_worker_is_told_where_to():
    class Forgetful(Npu):
        @classmethod
        def check_and_update_config(cls, vllm_config):
            """Forgets the worker."""

    with pytest.raises(ContractError, match=r"'npu' left parallel_config\.worker_cls at 'auto': its check_and_update"):
        worker(make(Forgetful))


@pytest.mark.parametrize(
    "named, message",
    [
        ("json.JSONDecoder", r"worker class of setting worker\.cls: 'json\.JSONDecoder' is not a subclass of vllm_ext"),
        ("no_module.Worker", r"'no_module\.Worker' cannot be imported: ModuleNotFoundError: No module named 'no_mod"),
        ("Worker", "'Worker' is not a class path 'package.module.Class'"),
    ],
)
def test_a_class_path_that_leads_nowhere_is_reported_with_who_named_it(named, message):
    with pytest.raises(ContractError, match=message):
        worker(make(worker__cls=named))


def test_the_attention_backend_is_the_platforms():
    assert make().attention_factory(LAYER, 8) is BACKEND_OF_CPU


def test_a_backend_that_cannot_serve_the_layer_is_refused_with_every_reason():
    with pytest.raises(
        ConfigError, match=r"head size 64 is not among \[32, 80\]; dtype torch.float32 is not among \['float16'\]"
    ):
        make(attention__backend=path(OnlyHalf)).attention_factory(LAYER, 8)


def test_a_platform_without_an_attention_backend_is_named():
    class Blank(Npu):
        @classmethod
        def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None):
            return ""

    with pytest.raises(ContractError, match="attention class of platform 'npu': expected a class path .*, got ''"):
        make(Blank).attention_factory(LAYER, 8)


def test_a_name_that_the_platform_does_not_have_is_refused_by_it():
    with pytest.raises(ConfigError, match="'FLASHINFER', for which no plugin has .*; registered: CPU_ATTN, REFERENCE"):
        make(CpuPlatform, attention__backend="FLASHINFER").attention_factory(LAYER, 8)


def test_the_communicator_is_built_with_its_arguments():
    built = make(communicator__cls=path(MyCommunicator)).communicator_factory(unique_name="tp:0")

    assert (type(built), built.kwargs) == (MyCommunicator, {"unique_name": "tp:0"})


@pytest.mark.parametrize(
    ("named", "faults"),
    [
        ("OldCommunicator", "does not take 'use_all2all'"),
        ("OddCommunicator", "does not take 'unique_name', and does not take 'use_all2all', and wants 'fabric' besides"),
    ],
)
def test_a_communicator_that_cannot_be_built_as_vllm_builds_it_is_refused_by_name(named, faults):
    with pytest.raises(ContractError) as caught:
        make(communicator__cls=f"{__name__}.{named}").communicator_cls()

    assert str(caught.value) == (
        f"communicator class of setting communicator.cls: {__name__}.{named} cannot be built: its constructor {faults}"
        ". It is called with the keywords cpu_group, device, device_group, unique_name, use_all2all"
    )


@pytest.mark.parametrize(
    ("question", "ask"),
    [
        ("get_device_communicator_cls", Dispatcher.communicator_cls),
        ("get_unquantized_linear_method_cls", Dispatcher.linear_method),
        ("import_kernels", worker),
    ],
)
def test_a_platform_that_fails_to_answer_is_named(question, ask):
    def fail(cls):
        raise OSError("driver too old")

    broken = type("Broken", (Npu,), {question: classmethod(fail)})

    with pytest.raises(PluginLoadError, match=r"platform 'npu' \(.*Broken\) failed: OSError: driver too old"):
        ask(make(broken))


def test_a_class_path_is_resolved_once(monkeypatch):
    dispatcher = make(worker__cls=path(MyWorker))
    first = type(worker(dispatcher))
    monkeypatch.setattr(f"{__name__}.MyWorker", WorkerBase)

    assert type(worker(dispatcher)) is first


def test_while_it_is_active_platform_configuration_and_dispatcher_are_its_own():
    outer, inner = make(), make()

    with outer.activate():
        with inner.activate():
            seen = get_current_dispatcher(), get_current_vllm_config(), current_platform.get()
        after = get_current_dispatcher()

    assert seen == (inner, inner.vllm_config, inner.platform)
    assert after is outer


def test_outside_of_an_engine_there_is_no_dispatcher():
    with pytest.raises(RuntimeError, match="no engine is active here"):
        get_current_dispatcher()


def test_no_engine_is_built_without_a_platform():
    with pytest.raises(PlatformUnavailable, match="no platform is available to build an engine on"):
        make(UnspecifiedPlatform)


def test_what_the_hooks_changed_is_kept():
    assert ("parallel_config.worker_cls", "platform:npu") in {(c.path, c.origin) for c in make().changes}


def test_the_contract_of_a_backend_is_a_subclass_of_attention_backend():
    with pytest.raises(ContractError, match=f"is not a subclass of {AttentionBackend.__module__}"):
        make(attention__backend="json.JSONDecoder").attention_factory(LAYER, 8)
