"""What the user named holds, also where a platform's hook sets something else."""

from __future__ import annotations

from operator import attrgetter

import pytest
from support.device import make_dispatcher
from support.hook_platform import install_platform

from vllm_ext.engine.executors.uniproc import UniProcExecutor

CLASSES = """
class Extension:
    def of_the_platform(self): return "platform"

class OwnWorker(NpuWorker):
    pass

class OwnExtension:
    def of_the_user(self): return "user"

from vllm_ext.engine.scheduling.scheduler import Scheduler

class NpuScheduler(Scheduler):
    pass

class OwnScheduler(Scheduler):
    pass
"""


def start(model, **settings):
    return make_dispatcher(model, platform__driver="npu", **settings)


@pytest.fixture
def npu(plugins):
    def install(hook):
        install_platform(plugins, hook, CLASSES)

    return install


def test_a_worker_that_the_user_named_is_not_replaced_by_the_platforms(npu, random_llama, caplog):
    npu('vllm_config.parallel_config.worker_cls = "acme_npu.NpuWorker"')

    dispatcher = start(random_llama, worker__cls="acme_npu.OwnWorker")

    assert dispatcher.worker_cls().__qualname__ == "OwnWorker"
    assert dispatcher.vllm_config.parallel_config.worker_cls == "acme_npu.OwnWorker"
    assert caplog.messages == [
        "platform plugin 'npu': check_and_update_config() sets parallel_config.worker_cls to 'acme_npu.NpuWorker', "
        "and worker.cls (command line (test:worker.cls)) names 'acme_npu.OwnWorker', which is used; the hook "
        "should set it only where it is 'auto'"
    ]


def test_what_a_hook_set_in_vain_is_kept_apart_from_what_it_changed(npu, random_llama):
    npu('vllm_config.parallel_config.worker_cls = "acme_npu.NpuWorker"')

    dispatcher = start(random_llama, worker__cls="acme_npu.OwnWorker")

    assert dispatcher.changes == ()
    (overruled,) = dispatcher.overruled
    assert (overruled.change.after, overruled.kept) == ("acme_npu.NpuWorker", "acme_npu.OwnWorker")


def test_without_a_word_of_the_user_the_worker_is_the_platforms(npu, random_llama, caplog):
    npu('vllm_config.parallel_config.worker_cls = "acme_npu.NpuWorker"')

    assert start(random_llama).worker_cls().__qualname__ == "NpuWorker"
    assert caplog.messages == []


def test_a_worker_extension_that_the_user_named_is_not_replaced(npu, random_llama, caplog):
    npu('vllm_config.parallel_config.worker_extension_cls = "acme_npu.Extension"')

    worker_cls = start(random_llama, worker__extension_cls="acme_npu.OwnExtension").worker_cls()

    assert (hasattr(worker_cls, "of_the_user"), hasattr(worker_cls, "of_the_platform")) == (True, False)
    assert (
        "worker.extension_cls (command line (test:worker.extension_cls)) names 'acme_npu.OwnExtension'" in caplog.text
    )


def test_a_scheduler_that_the_user_named_is_not_replaced(npu, random_llama, caplog):
    npu('vllm_config.scheduler_config.scheduler_cls = "acme_npu.NpuScheduler"')

    dispatcher = start(random_llama, engine__scheduler_cls="acme_npu.OwnScheduler")

    assert dispatcher.scheduler_cls().__qualname__ == "OwnScheduler"
    assert "sets scheduler_config.scheduler_cls to 'acme_npu.NpuScheduler'" in caplog.text


def test_an_executor_that_the_user_named_is_not_replaced(npu, random_llama, caplog):
    npu('vllm_config.parallel_config.distributed_executor_backend = "mp"')

    dispatcher = start(random_llama, engine__executor="uniproc")

    assert dispatcher.vllm_config.parallel_config.distributed_executor_backend == "uniproc"
    assert isinstance(dispatcher.executor_factory(), UniProcExecutor)
    assert (
        "sets parallel_config.distributed_executor_backend to 'multiproc', and engine.executor (command line "
        "(test:engine.executor)) names 'uniproc', which is used" in caplog.text
    )


@pytest.mark.parametrize(
    ("field", "setting", "theirs", "ours"),
    [
        ("attention_config.backend", "attention.backend", "REFERENCE", "SDPA"),
        # Random weights in place of the checkpoint's.
        ("load_config.load_format", "engine.load_format", "dummy", "safetensors"),
        ("model_config.tokenizer_mode", "engine.tokenizer_mode", "npu", "hf"),
    ],
)
def test_what_the_user_named_is_not_replaced(npu, random_llama, caplog, field, setting, theirs, ours):
    npu(f"vllm_config.{field} = {theirs!r}")

    dispatcher = start(random_llama, **{setting.replace(".", "__"): ours})

    assert attrgetter(field)(dispatcher.vllm_config) == ours
    assert f"sets {field} to {theirs!r}, and {setting} (command line (test:{setting})) names {ours!r}" in caplog.text
