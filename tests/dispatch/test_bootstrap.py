"""What a process does first, and the two functions of vLLM's plugin module on top of it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from vllm_ext import current_platform, load_general_plugins, load_plugins_by_group
from vllm_ext.config import Override, load_config
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.errors import PlatformUnavailable, PluginNotFound
from vllm_ext.managers import current, find_bound_plan

GENERAL = "vllm.general_plugins"


@pytest.fixture
def recorder(plugins):
    """A general plugin that writes down each of its calls and the platform it saw."""
    source = (
        "calls = []\ndef run():\n    from vllm_ext import current_platform\n    calls.append(current_platform.get())\n"
    )
    plugins.distribution("recorder", {GENERAL: ["rec = recorder:run"]}, {"recorder.py": source})

    def calls():
        import recorder

        return recorder.calls

    return calls


def test_general_plugins_run_for_the_bound_platform(recorder):
    started = bootstrap(load_config())

    assert recorder() == [started.binding.platform]
    assert [outcome.state for outcome in started.outcomes] == ["active", "active"]


def test_a_general_plugin_runs_once_however_often_it_is_asked_for(recorder):
    load_general_plugins()
    load_general_plugins()
    bootstrap(load_config())

    assert len(recorder()) == 1


def test_the_first_platform_bound_is_the_process_default():
    first = bootstrap(load_config())
    bootstrap(load_config())

    assert current_platform.get() is first.binding.platform


def test_a_process_has_the_default_platform_and_its_plan_or_neither(monkeypatch):
    class Interrupted(type):
        def __setattr__(cls, name, value):
            raise KeyboardInterrupt

    class Default(metaclass=Interrupted):
        bound_plan = None

    with monkeypatch.context() as patch:
        patch.setattr(current, "_ProcessDefault", Default)
        with pytest.raises(KeyboardInterrupt):
            bootstrap(load_config())

    assert (current_platform.has_default(), find_bound_plan()) == (False, None)


def test_of_threads_that_start_at_once_one_has_both_the_default_platform_and_its_plan():
    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(lambda _: bootstrap(load_config()), range(8)))

    pairs = [(one.binding.platform, one.binding.bound_plan) for one in started]
    default = current_platform.get(), find_bound_plan()
    assert [pair for pair in pairs if pair[0] is default[0] and pair[1] is default[1]]


def test_the_process_default_is_chosen_on_first_use_without_an_engine():
    assert current_platform.device_type == "cpu"


def test_the_plugins_of_a_group_are_loaded_and_not_called(recorder):
    loaded = load_plugins_by_group(GENERAL)

    assert list(loaded) == ["rec"]
    assert loaded["rec"].__name__ == "run"
    assert recorder() == []


def test_a_group_that_does_not_exist_is_an_error_with_the_closest_one():
    with pytest.raises(PluginNotFound, match="did you mean 'vllm.general_plugins'"):
        load_plugins_by_group("vllm.general_plugin")


def test_under_an_engine_its_plan_counts_and_not_the_environment(recorder):
    started = bootstrap(load_config(overrides=[Override("plugins.general.enabled", [], "test")]))

    with started.dispatcher().activate():
        load_general_plugins()

    assert recorder() == []
    assert load_plugins_by_group(GENERAL) == {}


def test_a_platforms_entry_point_cannot_load_plugins(plugins, caplog):
    source = "def register():\n    import vllm_ext\n    vllm_ext.load_general_plugins()\n"
    plugins.distribution("eager", {"vllm.platform_plugins": ["eager = eager:register"]}, {"eager.py": source})

    started = bootstrap(load_config())

    assert started.binding.platform.device_name == "cpu"
    assert "platform plugin 'eager' asked for plugins to be loaded while its own entry point runs" in caplog.text


def test_current_platform_is_chosen_on_first_use_where_nothing_was_started():
    program = (
        "import sys; from vllm_ext import current_platform; assert 'torch' not in sys.modules; "
        "print(current_platform.device_type)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")


def test_the_platform_is_asked_once_whatever_is_used_first(plugins):
    code = """
from vllm_ext.platforms.cpu import CpuPlatform
from vllm_ext import PlatformEnum
calls = []
def register():
    calls.append(1)
    return "npu.Npu"
class Npu(CpuPlatform):
    _enum = PlatformEnum.OOT
"""
    plugins.distribution("npu", {"vllm.platform_plugins": ["npu = npu:register"]}, {"npu.py": code})
    program = (
        "from vllm_ext import current_platform, load_general_plugins; current_platform.device_type; "
        "load_general_plugins(); load_general_plugins(); import npu; print(len(npu.calls))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(plugins.site)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_platform_that_asks_for_the_plugins_of_a_group_is_told_that_nothing_is_decided(plugins):
    code = f"from vllm_ext import load_plugins_by_group\ndef register(): load_plugins_by_group({GENERAL!r})\n"
    plugins.distribution("npu", {"vllm.platform_plugins": ["npu = npu:register"]}, {"npu.py": code})

    with pytest.raises(PlatformUnavailable, match="asked for the plugins of a group while its own entry point runs"):
        bootstrap(load_config(overrides=[Override("platform.driver", "npu", "--platform")]))
