"""``current_platform`` is the running engine's platform, else the process default."""

import subprocess
import sys
import threading

import pytest

from vllm_ext import Platform, PlatformEnum
from vllm_ext.contracts.current_platform import CurrentPlatform, current_platform, probing, use_platform


class Alpha(Platform):
    _enum = PlatformEnum.OOT
    device_name = device_type = "cpu"
    tag = "alpha"


class Beta(Alpha):
    tag = "beta"


def test_inside_an_engine_it_is_the_engines_platform():
    current_platform.set_default(Alpha())

    with use_platform(Beta()):
        inside = current_platform.tag

    assert (inside, current_platform.tag) == ("beta", "alpha")


def test_it_is_an_instance_of_the_platforms_class():
    current_platform.set_default(Alpha())

    assert isinstance(current_platform, Alpha)
    assert not isinstance(current_platform, Beta)
    with use_platform(Beta()):
        assert isinstance(current_platform, Beta)


def test_asking_for_its_class_does_not_choose_one():
    proxy = CurrentPlatform()
    proxy.set_resolver(Alpha)

    assert not isinstance(proxy, Platform)
    assert not proxy.has_default()


def test_what_is_set_is_the_platforms_own():
    alpha, beta = Alpha(), Beta()
    current_platform.set_default(alpha)

    with use_platform(beta):
        current_platform.tag = "changed"

    assert (alpha.tag, beta.tag, current_platform.tag) == ("alpha", "changed", "alpha")


def test_the_default_is_resolved_once_on_first_use():
    calls = []
    proxy = CurrentPlatform()
    proxy.set_resolver(lambda: calls.append(1) or Alpha())

    assert proxy.tag == proxy.tag == "alpha"
    assert len(calls) == 1


def test_another_thread_does_not_see_the_platform_of_this_one():
    current_platform.set_default(Alpha())
    seen = []

    with use_platform(Beta()):
        thread = threading.Thread(target=lambda: seen.append(current_platform.tag))
        thread.start()
        thread.join()

    assert seen == ["alpha"]


def test_inside_a_platforms_own_entry_point_it_raises_with_the_plugins_name():
    current_platform.set_default(Alpha())

    with (
        probing("npu"),
        pytest.raises(RuntimeError, match="platform plugin 'npu' asked for current_platform"),
    ):
        _ = current_platform.device_type


def test_a_misspelt_attribute_is_an_error_and_not_none():
    with (
        use_platform(Alpha()),
        pytest.raises(AttributeError, match="Alpha has no attribute 'get_divice_name'"),
    ):
        current_platform.get_divice_name()


def test_device_functions_come_from_torchs_module_for_the_device_type():
    import torch

    with use_platform(Beta()):
        assert current_platform.synchronize is torch.cpu.synchronize


def test_a_hook_that_is_not_implemented_names_platform_and_hook():
    with pytest.raises(NotImplementedError, match=r"Alpha does not implement get_device_total_memory\(\)"):
        Alpha.get_device_total_memory()


FORK = """
import os, signal, threading
from vllm_ext import ModelRegistry, Platform, PlatformEnum
from vllm_ext.contracts.current_platform import current_platform

class Alpha(Platform):
    _enum, device_name, device_type = PlatformEnum.OOT, "cpu", "cpu"

held = threading.Event()

def resolve():
    held.set()
    threading.Event().wait()

current_platform.set_resolver(resolve)
threading.Thread(target=current_platform.get, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    current_platform.set_resolver(Alpha)
    ModelRegistry.snapshot()
    os._exit(0 if current_platform.device_type == "cpu" else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_that_was_forked_while_a_thread_was_asking_can_ask_itself():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=120, check=False)

    assert done.returncode == 0
