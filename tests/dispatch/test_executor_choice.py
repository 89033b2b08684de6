"""The executor that a platform's hook asks for."""

from __future__ import annotations

import pytest
from support.device import make_dispatcher
from support.hook_platform import install_platform
from support.processes import nothing_left

from vllm_ext.engine.executors.multiproc import MultiprocExecutor
from vllm_ext.engine.executors.uniproc import UniProcExecutor
from vllm_ext.engine.llm import LLM
from vllm_ext.errors import AmbiguousPlugin, PluginNotFound

OWN = """
from vllm_ext.engine.executors.uniproc import UniProcExecutor

class OwnExecutor(UniProcExecutor):
    pass
"""


@pytest.fixture
def start(plugins, random_llama):
    """A dispatcher on the platform ``npu`` whose hook sets the executor."""

    def start(name, **settings):
        install_platform(plugins, f"vllm_config.parallel_config.distributed_executor_backend = {name!r}", OWN)
        return make_dispatcher(random_llama, platform__driver="npu", **settings)

    return start


@pytest.mark.parametrize("name", ["mp", pytest.param("multiproc", marks=pytest.mark.slow)])
def test_workers_in_processes_of_their_own(start, monkeypatch, name):
    with nothing_left(monkeypatch), LLM.from_dispatcher(start(name, engine__kv_cache_memory=1 << 20)) as llm:
        assert isinstance(llm.llm_engine.engine_core.executor, MultiprocExecutor)
        assert [receipt.name for receipt in llm.receipts] == ["front end", "worker 0"]


def test_vllms_name_is_one_of_ours_in_the_configuration_and_in_the_record(start):
    dispatcher = start("mp")

    (change,) = [change for change in dispatcher.changes if "executor" in change.path]
    assert dispatcher.vllm_config.parallel_config.distributed_executor_backend == change.after == "multiproc"


def test_vllms_name_of_what_there_is_changes_nothing(start):
    dispatcher = start("uni")
    executor = dispatcher.executor_factory()

    assert [change.path for change in dispatcher.changes] == ["parallel_config.worker_cls"]
    assert isinstance(executor, UniProcExecutor)
    executor.shutdown()


def test_one_of_the_platforms_distribution(start, plugins):
    plugins.distribution("runners", {"vllm_ext.executors": ["own = acme_npu:OwnExecutor"]}, {})

    executor = start("own").executor_factory()

    assert type(executor).__qualname__ == "OwnExecutor"
    executor.shutdown()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ray", "no executor plugin of that name is installed"),
        ("multproc", "no executor plugin of that name is installed (did you mean 'multiproc'?)"),
        (None, "no executor plugin of that name is installed"),
    ],
)
def test_one_that_is_not_installed_is_refused_with_those_that_are(start, name, why):
    with pytest.raises(PluginNotFound) as caught:
        start(name)

    assert str(caught.value) == (
        "platform plugin 'npu': check_and_update_config() sets parallel_config.distributed_executor_backend to "
        f"{name!r}, and {why}; to be had: multiproc, uniproc"
    )


def test_one_that_the_settings_do_not_admit_is_refused_with_the_reason(start, plugins):
    plugins.distribution("runners", {"vllm_ext.executors": ["own = acme_npu:OwnExecutor"]}, {})

    with pytest.raises(PluginNotFound, match=r"to 'own', and 'own' of runners 0.1 is disabled: .*; to be had: multipr"):
        start("own", allow_distributions=["acme"])


@pytest.fixture
def two_of_a_name(plugins):
    for name in ("runners", "walkers"):
        plugins.distribution(name, {"vllm_ext.executors": ["own = acme_npu:OwnExecutor"]}, {})


def test_one_that_two_distributions_have_is_refused_with_what_to_write(start, two_of_a_name):
    with pytest.raises(AmbiguousPlugin, match=r"the hook should set it to runners:own or walkers:own"):
        start("own")


def test_one_of_two_is_told_by_its_distribution(start, two_of_a_name):
    executor = start("walkers:own").executor_factory()

    assert type(executor).__qualname__ == "OwnExecutor"
    executor.shutdown()
