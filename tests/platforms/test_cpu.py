"""The in-tree cpu platform."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.device import driven_worker, make_dispatcher

from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.platforms import cpu, cpu_plugin
from vllm_ext.platforms.cpu import CpuPlatform


def test_the_entry_point_names_the_class_without_importing_torch():
    script = "import sys; from vllm_ext.platforms.cpu_plugin import register; print(register(), 'torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [f"{CpuPlatform.__module__}.{CpuPlatform.__qualname__}", "False"]
    assert cpu_plugin.register() == done.stdout.split()[0]


def test_memory_is_known():
    total, used = CpuPlatform.get_device_total_memory(), CpuPlatform.get_current_memory_usage()

    assert 0 < used < total
    assert CpuPlatform.get_device_name()


def test_the_worker_is_set_only_where_the_user_named_none(random_llama):
    config = make_dispatcher(random_llama).vllm_config
    assert config.parallel_config.worker_cls == "vllm_ext.worker.worker.Worker"

    config.parallel_config.worker_cls = "mine.Worker"
    CpuPlatform.check_and_update_config(config)
    assert config.parallel_config.worker_cls == "mine.Worker"


def test_its_communicator_is_one():
    assert resolve_class(CpuPlatform.get_device_communicator_cls(), DeviceCommunicatorBase, slot="", source="")


@pytest.mark.parametrize(("usable", "threads", "expected"), [(1, 2, 1), (8, 2, 2), (2, 2, 2)])
def test_a_worker_takes_no_more_threads_than_it_may_run(random_llama, monkeypatch, usable, threads, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    monkeypatch.setattr(cpu, "num_usable_cpus", lambda: usable)
    try:
        with driven_worker(random_llama):
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_checkpoints_own_dtype_is_kept(random_llama):
    for dtype in CpuPlatform().supported_dtypes:
        name = str(dtype).removeprefix("torch.")
        assert make_dispatcher(random_llama, engine__dtype=name).vllm_config.model_config.dtype is dtype
    assert make_dispatcher(random_llama).vllm_config.model_config.dtype is torch.float32


def test_seeding_repeats_random_numbers():
    CpuPlatform.seed_everything(7)
    first = torch.rand(3)
    CpuPlatform.seed_everything(7)

    assert torch.equal(torch.rand(3), first)
