"""General plugins run once in a process, in the order of the plan, whoever asks and however often."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import warnings
from types import ModuleType

import pytest
from support.distributions import GENERAL, PLATFORM
from support.plugins import write_distribution
from support.processes import wait_until

from vllm_ext.errors import ContractError, PluginLoadError
from vllm_ext.managers import bind_platform, general, load_general
from vllm_ext.registry.models import ModelRegistry
from vllm_ext.registry.owners import current_owner


@pytest.fixture
def shared(monkeypatch) -> ModuleType:
    """The module ``shared``, through which plugins and tests meet; ``runs`` has the names of plugins as they run."""
    module = ModuleType("shared")
    module.runs = []
    monkeypatch.setitem(sys.modules, "shared", module)
    return module


@pytest.fixture
def install(plugins, shared):
    """Install a general plugin ``name``; its ``register()`` notes that it runs, then does what ``body`` says."""

    def install(name: str, body: str = "pass", before: str = "", target: str = ":register") -> None:
        lines = [f"shared.runs.append({name!r})", *body.splitlines()]
        code = "\n    ".join([f"import shared\n{before}\ndef register():", *lines])
        plugins.distribution(
            f"{name}_dist", {GENERAL: [f"{name} = {name}_plugin{target}"]}, {f"{name}_plugin.py": f"{code}\n"}
        )

    return install


@pytest.fixture
def bind(make_plan):
    def bind(**settings):
        return bind_platform(make_plan(**settings)).bound_plan

    return bind


@pytest.fixture
def load(bind):
    def load(**settings):
        return load_general(bind(**settings))

    return load


def states(outcomes) -> dict[str, str]:
    return {outcome.key.name: outcome.state for outcome in outcomes}


def test_each_runs_once_however_often_they_are_loaded(install, load, shared):
    install("a")
    install("b")

    first, second = load(), load()

    assert shared.runs == ["a", "b"]
    assert first == second
    assert states(first) == {"a": "active", "b": "active"}
    assert all(outcome.seconds > 0 for outcome in first)


def test_the_order_is_that_of_the_list(install, load, shared):
    for name in ("a", "b", "c"):
        install(name)

    load(plugins__general__enabled=["c", "a"])

    assert shared.runs == ["c", "a"]


def test_a_later_plan_runs_what_has_not_run(install, load, shared):
    install("a")
    install("b")

    load(plugins__general__enabled=["b"])
    load()

    assert shared.runs == ["b", "a"]


def test_of_a_module_the_import_is_the_effect(install, load, shared):
    install("a", before="shared.runs.append('imported')", target="")

    assert states(load()) == {"a": "active"}
    load()
    assert shared.runs == ["imported"]


class TestFailures:
    FAULTS = pytest.mark.parametrize(
        ("body", "before", "cause"),
        [
            ("raise OSError('no licence')", "", "OSError: no licence"),
            ("import sys; sys.exit('bye')", "", "SystemExit: bye"),
            ("assert False, 'no'", "", "AssertionError: no"),
            ("pass", "import sys; sys.exit(1)", "SystemExit: 1"),
            ("pass", "assert False", "AssertionError"),
            ("pass", "import does_not_exist", "ModuleNotFoundError: No module named 'does_not_exist'"),
            (
                "from vllm import ModelRegistry",
                "",
                "ModuleNotFoundError: No module named 'vllm' "
                "(for this engine, import what plugins are made of from vllm_ext)",
            ),
            (
                "pass",
                "from vllm_ext.platforms.interface import Platform",
                "ModuleNotFoundError: No module named 'vllm_ext.platforms.interface' "
                "(for this engine, import what plugins are made of from vllm_ext)",
            ),
            (
                "import torch; torch.ops.vllm.acme_silu(1)",
                "",
                "AttributeError: '_OpNamespace' 'vllm' object has no attribute 'acme_silu' "
                "(what direct_register_custom_op() defines is under torch.ops.vllm_ext here)",
            ),
            ("pass", "def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
            ("raise ValueError from KeyError('innermost')", "", "KeyError: 'innermost'"),
        ],
    )

    @FAULTS
    def test_one_that_was_merely_found_is_warned_about_once_and_the_rest_runs(
        self, install, load, caplog, body, before, cause, shared
    ):
        install("a", body, before)
        install("b")

        outcomes = load()
        load()

        assert states(outcomes) == {"a": "failed", "b": "active"}
        assert outcomes[0].detail == cause
        assert "Traceback" in outcomes[0].traceback
        assert shared.runs.count("b") == 1
        assert caplog.messages == [f"general plugin 'a' of a-dist 0.1 is left out, since it failed: {cause}"]

    @FAULTS
    def test_one_that_was_named_is_an_error_with_its_cause(self, install, load, body, before, cause):
        install("a", body, before)

        with pytest.raises(PluginLoadError) as caught:
            load(plugins__general__enabled=["a"])

        assert str(caught.value) == (
            f"general plugin 'a' of a-dist 0.1 failed: {cause} (vllm.general_plugins: a_plugin:register)"
        )
        assert caught.value.plugin == "a"
        assert caught.value.exit_code == 1
        assert caught.value.__cause__ is not None

    def test_one_that_vllm_plugins_names_was_named(self, install, load):
        install("a", "raise OSError")

        with pytest.raises(PluginLoadError):
            load(allow_list="a")

    def test_a_failed_load_leaves_no_mark_and_is_tried_again(self, install, load, shared):
        install("a", "if shared.runs.count('a') == 1: raise OSError('not yet')")

        assert states(load()) == {"a": "failed"}
        assert states(load()) == {"a": "active"}
        load()
        assert shared.runs == ["a", "a"]

    @pytest.mark.parametrize(
        ("before", "detail"), [("register2 = 3", "neither callable nor a module, but 3"), ("", "AttributeError: ")]
    )
    def test_a_value_of_another_kind_is_named(self, install, load, before, detail):
        install("a", before=before, target=":register2")

        (outcome,) = load()

        assert outcome.state == "failed"
        assert detail in outcome.detail

    @pytest.mark.parametrize(
        ("function", "what"),
        [
            ("async def run(): shared.runs.append('run')", "a coroutine"),
            ("def run(): shared.runs.append('run'); yield", "a generator"),
            ("async def run(): shared.runs.append('run'); yield", "a generator"),
        ],
    )
    def test_a_call_that_runs_nothing_is_a_breach_of_the_contract(self, install, load, shared, function, what):
        install("acme", before=function, target=":run")

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(PluginLoadError) as caught:
                load(plugins__general__enabled=["acme"])

        assert f"'acme_plugin:run' returned {what}, so that nothing of it has run; it has to be" in str(caught.value)
        assert isinstance(caught.value.__cause__, ContractError)
        assert shared.runs == []

    def test_an_error_that_exits_when_it_is_printed_ends_nothing(self, install, load, shared, caplog):
        before = "class Exits(Exception):\n    def __str__(self): raise SystemExit(7)"
        install("acme", "raise Exits", before=before)
        install("zeta")

        load()

        assert "it failed: Exits: its message cannot be read" in caplog.text
        assert shared.runs == ["acme", "zeta"]

    def test_an_interrupt_passes(self, install, load):
        install("a", "raise KeyboardInterrupt")

        with pytest.raises(KeyboardInterrupt):
            load()


class TestReentrancy:
    @pytest.fixture
    def bound_plan(self, install, bind, shared):
        """Plugin ``a`` does what the test puts into ``shared.inside``; ``b`` comes after it."""
        install("a", "shared.inside()")
        install("b")
        return bind()

    def test_a_plugin_may_ask_for_all_of_them_to_be_loaded(self, bound_plan, shared):
        inner = []
        shared.inside = lambda: inner.append(load_general(bound_plan))

        outcomes = load_general(bound_plan)

        assert shared.runs == ["a", "b"]
        assert states(outcomes) == {"a": "active", "b": "active"}
        assert inner == [[]]

    def test_threads_wait_for_each_other_and_run_each_once(self, bound_plan, shared):
        shared.inside = lambda: time.sleep(0.05)
        results = []
        threads = [threading.Thread(target=lambda: results.append(load_general(bound_plan))) for _ in range(4)]

        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert shared.runs == ["a", "b"]
        assert [states(outcomes) for outcomes in results] == [{"a": "active", "b": "active"}] * 4

    def test_a_plugin_that_another_thread_waits_for_is_named_before_both_hang(
        self, bound_plan, shared, caplog, monkeypatch
    ):
        monkeypatch.setattr(general, "_PATIENCE_S", 0.05)
        helper = threading.Thread(target=load_general, args=(bound_plan,))

        def start_it_and_wait():
            helper.start()
            # As long as a plugin that joins its thread would wait, were it not a test.
            return wait_until(lambda: caplog.messages)

        shared.inside = start_it_and_wait
        load_general(bound_plan)
        helper.join(60)

        assert caplog.messages == [
            "general plugin 'a' of a-dist 0.1 has been running for 0.05 seconds, and another thread waits for it; if "
            "it waits for that thread in turn, neither goes on"
        ]
        assert shared.runs == ["a", "b"]

    def test_a_forked_child_inherits_what_ran_and_can_load_more(self, install, load, shared):
        install("a")
        load()
        install("b")

        assert holds_in_forked_child(lambda: states(load()) == {"a": "active", "b": "active"})
        assert holds_in_forked_child(lambda: load() and shared.runs == ["a", "b"])

    def test_a_fork_while_another_thread_loads_leaves_no_lock_behind(self, bound_plan, shared):
        entered, leave = threading.Event(), threading.Event()
        shared.inside = lambda: entered.set() or leave.wait(60)
        loading = threading.Thread(target=load_general, args=(bound_plan,))
        loading.start()
        assert entered.wait(60)

        def loads_in_child() -> bool:
            shared.inside = lambda: None
            return states(load_general(bound_plan)) == {"a": "active", "b": "active"}

        succeeded = holds_in_forked_child(loads_in_child)
        leave.set()
        loading.join()

        assert succeeded


def holds_in_forked_child(check) -> bool:
    """Whether ``check`` is true in a forked child of this process."""
    with warnings.catch_warnings():
        # Python warns of a fork beside threads, which is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def test_registrations_belong_to_the_plugin(install, load):
    install("a", "from vllm_ext.registry.models import ModelRegistry\nModelRegistry.register_model('Arch', 'x:Y')")

    load()

    entry = ModelRegistry.snapshot()["Arch"]
    assert (entry.owner.plugin, entry.owner.distribution) == ("a", "a-dist")
    assert current_owner().plugin is None


def test_those_of_a_distribution_whose_platform_is_not_used_do_not_run(plugins, load):
    files = {"acme.py": "def register():\n    raise RuntimeError\n"}
    plugins.distribution("acme", {PLATFORM: ["npu = acme:register"], GENERAL: ["ops = acme:register"]}, files)

    assert load(platform__driver="cpu") == []


class TestOptions:
    """What the settings have under ``options`` for a plugin."""

    def install(self, plugins, signature: str, body: str) -> None:
        code = f"import shared\ndef register({signature}):\n    {body}\n"
        plugins.distribution("a_dist", {GENERAL: ["a = a_plugin:register"]}, {"a_plugin.py": code})

    @pytest.mark.parametrize("signature", ["config", "*, config", "config=None"])
    def test_a_callable_with_a_parameter_config_is_given_them(self, plugins, load, shared, signature):
        self.install(plugins, signature, "shared.runs.append(config)")

        load(options={"a": {"x": 1}})

        assert shared.runs == [{"x": 1}]

    def test_without_any_it_is_given_an_empty_mapping(self, plugins, load, shared):
        self.install(plugins, "config", "shared.runs.append(config)")

        load()

        assert shared.runs == [{}]

    @pytest.mark.parametrize("signature", ["", "**kwargs", "config, /"])
    def test_any_other_callable_is_not_and_the_loss_is_said(self, plugins, load, shared, caplog, signature):
        self.install(plugins, signature.replace("config", "config=3"), "pass")

        load(options={"a": {"x": 1}})

        assert caplog.messages == [
            "the options for general plugin 'a' of a-dist 0.1 are not handed over: 'a_plugin:register' has no "
            "parameter 'config'"
        ]


SPAWNED = """
import multiprocessing, os
import vllm_ext

def child(queue):
    vllm_ext.load_general_plugins()
    import spawned_plugin
    queue.put((os.getpid(), spawned_plugin.pids))

if __name__ == "__main__":
    vllm_ext.load_general_plugins()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    pid, pids = queue.get(timeout=60)
    process.join()
    print(pids == [pid] and pid != os.getpid())
"""


def test_a_spawned_child_loads_anew(plugins, tmp_path):
    code = "import os\npids = []\ndef register(): pids.append(os.getpid())\n"
    plugins.distribution("spawned", {GENERAL: ["s = spawned_plugin:register"]}, {"spawned_plugin.py": code})
    (tmp_path / "main.py").write_text(SPAWNED)
    environ = {**os.environ, "PYTHONPATH": str(plugins.site)}

    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=120
    )

    assert (done.stdout, done.stderr) == ("True\n", "")


def test_one_that_registers_twice_registers_once_more_without_a_word(install, load, caplog):
    line = "ModelRegistry.register_model('Arch', 'x:Y')"
    install("a", f"from vllm_ext import ModelRegistry\n{line}\n{line}")

    assert states(load()) == {"a": "active"}
    assert caplog.messages == []
    assert "Arch" in ModelRegistry.get_supported_archs()


def test_a_replacement_of_anothers_registration_names_both(install, load, caplog):
    for name in ("a", "b"):
        install(name, f"from vllm_ext import ModelRegistry\nModelRegistry.register_model('Arch', 'x:{name.upper()}')")

    load()

    assert caplog.messages == [
        "model architecture 'Arch': plugin 'b' of b-dist replaces the registration of plugin 'a' of a-dist"
    ]


def test_a_program_without_logging_of_its_own_sees_what_failed(tmp_path):
    """Nobody has to know that there is a logger to set up: Python's last resort writes warnings to stderr."""
    site = tmp_path / "site"
    write_distribution(
        site,
        "bad_dist",
        {GENERAL: ["bad = bad_plugin:register"]},
        {"bad_plugin.py": "def register():\n    raise RuntimeError('no firmware')\n"},
    )
    program = "import vllm_ext; vllm_ext.load_general_plugins()"
    environ = os.environ | {"PYTHONPATH": str(site)}

    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert re.search(r"plugin 'bad'.* failed.*no firmware", done.stderr)
