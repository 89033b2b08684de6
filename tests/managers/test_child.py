"""Loading in a child process: whatever a plugin does there is a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.distributions import GENERAL, PLATFORM, config

from vllm_ext.contracts.groups import KIND_OF_GROUP
from vllm_ext.discovery import scan
from vllm_ext.managers import load_general
from vllm_ext.managers.child import load_all_in_children, load_in_child
from vllm_ext.plan import resolve


@pytest.fixture
def install(plugins):
    """Install a plugin ``name`` with that code at import and in its callable."""

    def install(body: str = "pass", before: str = "", name: str = "a", group: str = GENERAL) -> None:
        lines = "\n    ".join(body.splitlines())
        files = {f"{name}_plugin.py": f"{before}\ndef register():\n    {lines}\n"}
        plugins.distribution(f"{name}_dist", {group: [f"{name} = {name}_plugin:register"]}, files)

    return install


@pytest.fixture
def load(install, make_plan):
    """Install a plugin as ``install`` does, and load it in a child."""

    def load(*args, timeout_s=20.0, group=GENERAL, **settings):
        install(*args, group=group)
        plan = make_plan(**settings)
        (decision,) = plan.find(KIND_OF_GROUP[group].key, "a")
        return load_in_child(plan, decision, timeout_s)

    return load


def test_a_good_plugin_is_active_with_the_seconds_it_took(load):
    report = load("import time; time.sleep(0.05)")

    assert (report.outcome.state, report.outcome.detail, report.effects) == ("active", "", ())
    assert report.outcome.seconds >= report.outcome.call_seconds >= 0.05
    assert report.outcome.key == report.decision.key


def test_nothing_of_it_reaches_this_process(load, monkeypatch):
    monkeypatch.delenv("LEFT_BY_PLUGIN", raising=False)
    load("import os; os.environ['LEFT_BY_PLUGIN'] = '1'")

    assert "LEFT_BY_PLUGIN" not in os.environ


@pytest.mark.parametrize(
    ("body", "before", "detail"),
    [
        ("raise OSError('no licence')", "", "OSError: no licence"),
        ("import sys; sys.exit(0)", "", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "", "KeyboardInterrupt"),
        ("pass", "import does_not_exist", "ModuleNotFoundError: No module named 'does_not_exist'"),
        ("import os; os._exit(3)", "", "it ended the process with exit code 3 when it was called"),
        ("pass", "import os; os._exit(0)", "it ended the process with exit code 0 while it was imported"),
        ("import ctypes; ctypes.string_at(0)", "", "it ended the process by SIGSEGV when it was called"),
        ("import os; os.kill(os.getpid(), 9)", "", "it ended the process by SIGKILL when it was called"),
    ],
)
def test_a_failure_has_its_cause_in_one_line(load, body, before, detail):
    report = load(body, before)

    assert (report.outcome.state, report.outcome.detail) == ("failed", detail)


def test_a_signal_without_a_name_is_its_number(load):
    assert (
        load("import os; os.kill(os.getpid(), 40)").outcome.detail
        == "it ended the process by signal 40 when it was called"
    )


def test_a_handler_of_a_signal_without_a_name_is_no_failure(load):
    report = load("import signal; signal.signal(40, signal.SIG_IGN)")

    assert (report.outcome.state, report.effects) == ("active", ("replaces the handlers of signals: signal 40",))


def test_a_current_directory_that_is_gone_is_no_failure_of_the_plugin(load, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    assert load().outcome.state == "active"


def test_an_entry_of_the_path_that_is_no_path_is_left_out(load, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, None])

    assert load().outcome.state == "active"


def test_the_time_limit_begins_when_the_process_is_up(load, tmp_path, monkeypatch):
    """A slow start of Python is not the plugin's."""
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(2)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert load(timeout_s=1.5).outcome.state == "active"


def test_an_interrupt_ends_the_child(install, make_plan, tmp_path):
    file = tmp_path / "pid"
    install(f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    plan = make_plan()
    threading.Thread(target=interrupt_when, args=([file],)).start()

    with pytest.raises(KeyboardInterrupt):
        load_in_child(plan, plan.find("general", "a")[0])

    assert not is_running(int(file.read_text()))


def test_a_general_plugin_that_needs_a_platform_where_none_can_be_chosen_is_told_why(install, make_plan):
    install("from vllm_ext import current_platform; current_platform.device_type")
    plan = resolve(scan(), config(platform__driver="missing"))

    detail = load_in_child(plan, plan.find("general", "a")[0]).outcome.detail

    assert detail.startswith("PluginNotFound: no platform plugin 'missing' is installed")


def test_an_exception_keeps_its_traceback(load):
    traceback = load("raise OSError('no licence')").outcome.traceback

    assert "a_plugin.py" in traceback
    assert traceback.endswith("OSError: no licence\n")


def test_a_crash_shows_where_it_was(load):
    report = load("import ctypes; ctypes.string_at(0)")

    assert "Segmentation fault" in report.outcome.traceback
    assert "a_plugin.py" in report.outcome.traceback


@pytest.mark.parametrize("body", ["", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_a_hang_ends_at_the_time_limit_and_shows_where_it_was(load, body):
    report = load(f"{body}\nimport time; time.sleep(600)", timeout_s=1.5)

    assert (report.outcome.state, report.outcome.detail) == (
        "failed",
        "it did not finish within 1.5 s when it was called",
    )
    assert "in register" in report.outcome.traceback


def test_one_that_stops_itself_ends_at_the_time_limit_too(load):
    report = load("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", timeout_s=1.0)

    assert report.outcome.detail == "it did not finish within 1 s when it was called"


def test_the_time_limit_is_a_setting(load):
    report = load("import time; time.sleep(600)", timeout_s=None, probe__timeout_s=1)

    assert report.outcome.detail == "it did not finish within 1 s when it was called"


def test_a_process_that_it_leaves_behind_ends_with_it(load, tmp_path):
    file = tmp_path / "pid"

    report = load(f"import subprocess\nopen({str(file)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))")

    assert report.outcome.state == "active"
    assert "leaves processes running" in report.effects[0]
    assert not is_running(int(file.read_text()))


def test_a_thread_that_does_not_end_keeps_nobody_waiting(load):
    report = load("import threading, time; threading.Thread(target=time.sleep, args=(600,), name='t').start()")

    assert report.outcome.state == "active"
    assert report.effects == ("leaves threads running: t",)


def test_megabytes_of_output_neither_block_it_nor_are_kept(load):
    report = load("for _ in range(50): print('x' * 100_000)")

    assert report.outcome.state == "active"
    assert report.effects == ("writes 5.0 MB to standard output and error",)
    assert 0 < len(report.output) <= 16 * 1024


def test_it_finds_its_standard_input_empty(load):
    assert load("assert input() == 'x'").outcome.detail == "EOFError: EOF when reading a line"


@pytest.mark.parametrize(
    ("entry", "shown"), [("pathlib.Path('/opt/vendored')", "/opt/vendored"), ("b'/opt/vendored'", "b'/opt/vendored'")]
)
def test_an_entry_of_the_path_that_is_no_string_is_named_as_a_side_effect(load, entry, shown):
    report = load(f"import pathlib, sys; sys.path.append({entry})")

    assert (report.outcome.state, report.effects) == ("active", (f"changes sys.path: adds {shown}",))


def test_what_cannot_be_compared_is_a_side_effect_beside_the_others(load):
    entry = "class Entry:\n    def __str__(self): raise SystemExit(3)\n"

    report = load("import os, sys; sys.path.append(Entry()); os.environ['X_LEFT'] = '1'", entry)

    assert (report.outcome.state, report.effects) == (
        "active",
        (
            "leaves sys.path in a state that cannot be compared: SystemExit: 3",
            "changes environment variables: X_LEFT",
        ),
    )


def test_side_effects_are_named(load):
    report = load(
        "import os, signal, sys, threading\n"
        "sys.path.insert(0, '/added')\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.environ['CHANGED'] = '1'\n"
        "os.chdir('/')\n"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
    )

    assert report.effects == (
        "changes sys.path: adds /added",
        "replaces the handlers of signals: SIGTERM",
        "changes environment variables: CHANGED",
        "changes the current directory to /",
        "starts a thread that fails: ZeroDivisionError: division by zero",
    )


def test_options_reach_a_callable_that_takes_them(plugins, make_plan):
    files = {"a_plugin.py": "def register(config): raise ValueError(config)\n"}
    plugins.distribution("a_dist", {GENERAL: ["a = a_plugin:register"]}, files)
    plan = make_plan(options={"a": {"x": 1}})

    report = load_in_child(plan, plan.find("general", "a")[0])

    assert report.outcome.detail == "ValueError: {'x': 1}"


class TestPlatforms:
    def test_one_that_declines_is_unavailable_with_its_reason(self, load):
        report = load("from vllm_ext import Unavailable; raise Unavailable('no device')", group=PLATFORM)

        assert (report.outcome.state, report.outcome.detail) == ("unavailable", "no device")

    @pytest.mark.parametrize(
        ("answer", "state"), [("vllm_ext.platforms.cpu.CpuPlatform", "active"), ("json.JSONDecoder", "failed")]
    )
    def test_one_that_answers_is_built_and_checked(self, load, answer, state):
        assert load(f"return {answer!r}", group=PLATFORM).outcome.state == state

    def test_one_that_asks_for_the_current_platform_is_told_why_there_is_none(self, load):
        report = load("from vllm_ext import current_platform; return current_platform.device_type", group=PLATFORM)

        assert "platform plugin 'a' asked for current_platform while its own entry point runs" in report.outcome.detail

    def test_a_general_plugin_finds_the_platform_of_the_plan(self, load):
        body = "from vllm_ext import current_platform; raise ValueError(current_platform.device_type)"

        assert load(body, platform__driver="cpu").outcome.detail == "ValueError: cpu"


def test_a_plugin_that_asks_for_all_plugins_runs_no_other(install, make_plan, tmp_path):
    canary = tmp_path / "canary"
    install("from vllm_ext import load_general_plugins; load_general_plugins()")
    install(f"open({str(canary)!r}, 'w')", name="b")
    plan = make_plan()

    report = load_in_child(plan, plan.find("general", "a")[0])

    assert report.outcome.state == "active"
    assert not canary.exists()


class TestMany:
    def test_reports_come_in_the_order_asked_for(self, install, make_plan):
        install("import time; time.sleep(0.5)", name="a")
        install("raise OSError", name="b")
        install(name="c")
        plan = make_plan()
        done = []

        reports = load_all_in_children(plan, plan.selected("general"), lambda: done.append(1))

        assert [(r.decision.name, r.outcome.state) for r in reports] == [
            ("a", "active"),
            ("b", "failed"),
            ("c", "active"),
        ]
        assert len(done) == 3

    def test_an_interrupt_ends_all_children(self, install, make_plan, tmp_path):
        for name in ("a", "b"):
            # The file has its content as soon as it is there: what comes too late, an interrupt ends.
            install(
                f"import os, time; open({str(tmp_path / name)!r} + '.new', 'w').write(str(os.getpid()))\n"
                f"os.rename({str(tmp_path / name)!r} + '.new', {str(tmp_path / name)!r}); time.sleep(600)",
                name=name,
            )
        plan = make_plan()

        threading.Thread(target=interrupt_when, args=([tmp_path / "a", tmp_path / "b"],)).start()
        with pytest.raises(KeyboardInterrupt):
            load_all_in_children(plan, plan.selected("general"))

        assert not any(is_running(int(file.read_text())) for file in (tmp_path / "a", tmp_path / "b") if file.exists())


def interrupt_when(files: list[Path]) -> None:
    """Interrupt this process as soon as one of the files has content."""
    while not any(file.exists() and file.read_text() for file in files):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def is_running(pid: int) -> bool:
    """Whether the process is there for long, and not merely waiting to be reaped."""
    for _ in range(3000):
        try:
            with open(f"/proc/{pid}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.01)
    return True


class TestSecrets:
    """A plugin may repeat what it was given; vllm_ext does not pass that on."""

    CODE = "def register(config):\n    print(config)\n    raise ValueError('bad token ' + config['token'])\n"

    @pytest.fixture
    def plan(self, plugins, make_plan):
        plugins.distribution("a_dist", {GENERAL: ["a = a_plugin:register"]}, {"a_plugin.py": self.CODE})
        return make_plan(options={"a": {"token": "S3CR3T"}})

    def test_a_report_does_not_have_them(self, plan):
        report = load_in_child(plan, plan.find("general", "a")[0])

        assert report.outcome.detail == "ValueError: bad token ********"
        assert "S3CR3T" not in report.outcome.traceback + report.output
        assert "********" in report.output

    def test_neither_has_a_warning(self, plan, caplog):
        load_general(plan.bind(None))

        assert "since it failed: ValueError: bad token ********" in caplog.text


@pytest.mark.parametrize("line", ["{}", '{"outcome": "lie"}', "junk", "\\xff"])
def test_what_a_plugin_writes_into_the_pipe_is_no_report(load, line):
    report = load(
        f"import os\nfor number in range(3, 64):\n    try: os.write(number, b'{line}\\n')\n    except OSError: pass"
    )

    assert report.outcome.state == "active"


def test_one_that_closes_the_pipe_is_told_from_one_that_exits(load):
    report = load("import os; os.closerange(3, 256)")

    assert report.outcome.detail == "it closed the pipe through which it is watched, when it was called"


PARENT = """
import sys
from vllm_ext.config import load_config
from vllm_ext.dispatch.planning import make_plan
from vllm_ext.managers import load_general
from vllm_ext.managers.child import load_all_in_children
plan = make_plan(load_config())
load_all_in_children(plan, plan.selected("general"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a process with its parent")
def test_children_end_with_a_parent_that_is_killed(install, plugins, tmp_path):
    file = tmp_path / "pid"
    install(f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env={**os.environ, "PYTHONPATH": str(plugins.site)})
    while not (file.exists() and file.read_text()):
        time.sleep(0.02)

    parent.kill()
    parent.wait()

    assert not is_running(int(file.read_text()))
