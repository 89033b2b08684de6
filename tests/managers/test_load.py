"""Single plugins, the plugins of a group, and the executor."""

from __future__ import annotations

import contextlib

import pytest
from support.distributions import GENERAL, PLATFORM

from vllm_ext.contracts.executor import Executor
from vllm_ext.contracts.groups import (
    ENDPOINT,
    EXECUTOR,
    EXECUTORS_GROUP,
    IO_PROCESSOR,
    LOGITS_PROCESSOR,
    STAT_LOGGER,
    PluginKind,
)
from vllm_ext.errors import ContractError, PluginLoadError, PluginNotFound
from vllm_ext.managers import bind_platform, extension_outcomes, load_driver, load_extensions, load_group
from vllm_ext.managers.load import build_extension
from vllm_ext.managers.planned import NamedPlugins

CODE = "def one(): raise RuntimeError\ndef two(): raise RuntimeError\n"


@pytest.fixture
def acme(plugins):
    """Two good plugins and a broken one."""
    entry_points = {GENERAL: ["two = acme:two", "one = acme:one", "broken = acme:three"], PLATFORM: ["npu = acme:one"]}
    plugins.distribution("acme", entry_points, {"acme.py": CODE})


def test_a_plugin_is_imported_and_not_called(acme, make_plan):
    plan = make_plan()
    manager = NamedPlugins(plan, plan.find("general", "one"), namespace=GENERAL)
    (outcome,) = manager.outcomes

    assert manager.extensions[0].plugin.__name__ == "one"
    assert (outcome.state, outcome.error) == ("active", None)
    assert outcome.seconds > 0


def test_one_that_cannot_be_imported_has_an_outcome(acme, make_plan):
    plan = make_plan()
    manager = NamedPlugins(plan, plan.find("general", "broken"), namespace=GENERAL)
    (outcome,) = manager.outcomes

    assert manager.extensions == []
    assert (outcome.state, outcome.detail) == ("failed", "AttributeError: module 'acme' has no attribute 'three'")
    assert outcome.traceback.endswith(f"{outcome.detail}\n")


def test_the_entry_point_keeps_its_distribution(acme, make_plan):
    plan = make_plan()
    (extension,) = NamedPlugins(plan, plan.find("general", "one"), namespace=GENERAL)

    assert (extension.entry_point.dist.name, extension.entry_point.dist.version) == ("acme", "0.1")


class TestWhatIsDoneNow:
    """A plugin that hangs is named: beforehand in the log for debugging, and where somebody interrupts it."""

    @pytest.fixture
    def load(self, plugins, make_plan, caplog):
        """Load a plugin that logs or raises as ``code`` says; returns what was logged."""

        def load(code: str) -> list[str]:
            plugins.distribution("acme", {GENERAL: ["slow = slow:run"]}, {"slow.py": f"import logging\n{code}\n"})
            plan = make_plan()
            with caplog.at_level("DEBUG", "vllm_ext"), contextlib.suppress(KeyboardInterrupt):
                NamedPlugins(plan, plan.find("general", "slow"), namespace=GENERAL, invoke_on_load=True)
            return [record.getMessage() for record in caplog.records if record.levelname in ("DEBUG", "ERROR")]

        return load

    def test_the_log_has_each_step_before_it_is_done(self, load):
        assert load("logging.error('imported')\ndef run(): logging.error('called')") == [
            "general plugin 'slow' of acme 0.1 is imported now: slow:run",
            "imported",
            "general plugin 'slow' of acme 0.1 is called now",
            "called",
        ]

    @pytest.mark.parametrize(
        ("code", "verb"),
        [("raise KeyboardInterrupt", "imported"), ("def run(): raise KeyboardInterrupt", "called")],
    )
    def test_an_interrupt_says_what_it_broke_off(self, load, code, verb):
        assert load(code)[-1] == f"interrupted while general plugin 'slow' of acme 0.1 was {verb} (slow:run)"

    def test_an_interrupt_while_an_extension_is_built_says_so(self, acme, make_plan, caplog):
        plan = make_plan()

        def build() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_extension(plan.bind(None), plan.find("general", "one")[0], build)

        assert caplog.messages == ["interrupted while general plugin 'one' of acme 0.1 was built (acme:one)"]


class TestGroups:
    def test_plugins_come_by_name_in_the_order_of_the_plan_and_uncalled(self, acme, make_plan):
        plan = make_plan(plugins__general__enabled=["two", "one"])

        assert {name: plugin.__name__ for name, plugin in load_group(plan, GENERAL).items()} == {
            "two": "two",
            "one": "one",
        }
        assert list(load_group(plan, GENERAL)) == ["two", "one"]

    def test_of_platforms_the_candidates_come(self, acme, make_plan):
        assert list(load_group(make_plan(), PLATFORM)) == ["npu"]

    def test_what_binding_left_out_is_not_loaded(self, plugins, make_plan):
        entry_points = {PLATFORM: ["npu = zeta:npu"], GENERAL: ["ops = zeta:ops"]}
        plugins.distribution("zeta", entry_points, {"zeta.py": "raise RuntimeError('was imported')"})
        bound_plan = bind_platform(make_plan(platform__driver="cpu")).bound_plan

        assert load_group(bound_plan, GENERAL) == {}
        assert load_group(bound_plan, PLATFORM) == {}

    def test_namesakes_come_with_their_distributions(self, plugins, make_plan):
        for name in ("acme", "zeta"):
            plugins.distribution(name, {PLATFORM: [f"npu = {name}:one"]}, {f"{name}.py": CODE})

        assert list(load_group(make_plan(platform__driver=["zeta:npu", "acme:npu"]), PLATFORM)) == [
            "zeta:npu",
            "acme:npu",
        ]

    def test_one_that_fails_is_warned_about_and_left_out(self, acme, make_plan, caplog):
        assert list(load_group(make_plan(), GENERAL)) == ["one", "two"]
        assert caplog.messages == [
            "general plugin 'broken' of acme 0.1 is left out, since it failed: "
            "AttributeError: module 'acme' has no attribute 'three'"
        ]

    def test_one_that_fails_and_was_named_is_an_error(self, acme, make_plan):
        with pytest.raises(PluginLoadError, match="general plugin 'broken' of acme 0.1 failed: AttributeError"):
            load_group(make_plan(plugins__general__enabled=["broken"]), GENERAL)

    def test_a_group_that_does_not_exist_is_an_error_with_the_closest(self, make_plan):
        with pytest.raises(PluginNotFound) as caught:
            load_group(make_plan(), "vllm.general_plugin")

        assert "(did you mean 'vllm.general_plugins'?); known: vllm.endpoint_plugins, vllm.general_plugins" in str(
            caught.value
        )


class TestExecutor:
    @pytest.fixture
    def executors(self, plugins):
        code = (
            "from vllm_ext.contracts.executor import Executor\nclass Good(Executor):\n"
            "    _init_executor = collective_rpc = check_health = shutdown = lambda self, *args: None\n"
            "class Bad: pass\ndef __getattr__(name): raise OSError('no cluster')\n"
        )
        lines = ["good = acme:Good", "bad = acme:Bad", "broken = acme:Broken"]
        plugins.distribution("acme", {EXECUTORS_GROUP: lines}, {"acme.py": code})

    def load(self, make_plan, name: str) -> type[Executor]:
        plan = make_plan(engine__executor=name)
        return load_driver(plan.bind(None), EXECUTOR, name)

    @pytest.mark.parametrize("name", ["good", "acme:good"])
    def test_the_class_that_the_settings_name(self, executors, make_plan, name):
        executor_cls = self.load(make_plan, name)

        assert (executor_cls.__module__, executor_cls.__name__) == ("acme", "Good")

    def test_another_class_is_a_breach_of_the_contract(self, executors, make_plan):
        with pytest.raises(PluginLoadError) as caught:
            self.load(make_plan, "bad")

        assert isinstance(caught.value.__cause__, ContractError)
        assert str(caught.value.__cause__).startswith(
            "executor plugin 'bad' of acme 0.1: 'acme:Bad' is not a subclass of vllm_ext.contracts.executor.Executor"
        )

    def test_a_failure_is_raised_with_its_cause_and_not_as_a_missing_driver(self, executors, make_plan):
        with pytest.raises(
            PluginLoadError, match="executor plugin 'broken' of acme 0.1 failed: OSError: no cluster"
        ) as e:
            self.load(make_plan, "broken")

        assert isinstance(e.value.__cause__, OSError)

    def test_one_that_the_plan_did_not_select_is_not_loaded(self, executors, make_plan):
        bound_plan = bind_platform(make_plan(engine__executor="good")).bound_plan

        with pytest.raises(PluginNotFound, match="executor plugin 'bad' is not in the plan; selected: good"):
            load_driver(bound_plan, EXECUTOR, "bad")


class TestExtensions:
    """Stat loggers, logits processors and endpoints: each is checked against its contract."""

    CODE = """
from vllm_ext import LogitsProcessor, StatLoggerBase
class Logger(StatLoggerBase):
    def __init__(self, vllm_config, engine_index=0): ...
    def record(self, *args, **kwargs): ...
    def log_engine_initialized(self): ...
class Processor(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory): ...
    def apply(self, logits): return logits
    def is_argmax_invariant(self): return True
    def update_state(self, batch_update): ...
class Endpoint:
    name, required_tasks = "hello", None
    def attach_router(self, app): ...
    async def init_state(self, engine_client, state, args): ...
def config_taker(config):
    endpoint = Endpoint()
    endpoint.name = config["name"]
    return endpoint
class Half: name = "half"
class Silent(StatLoggerBase):
    def __init__(self, vllm_config, engine_index=0): ...
class Idle(LogitsProcessor):
    def apply(self, logits): return logits
"""

    @pytest.fixture
    def install(self, plugins):
        def install(kind: PluginKind, *lines: str) -> None:
            plugins.distribution("acme", {kind.groups[0]: lines}, {"acme.py": self.CODE})

        return install

    @pytest.mark.parametrize("kind, value", [(STAT_LOGGER, "Logger"), (LOGITS_PROCESSOR, "Processor")])
    def test_of_a_class_the_class_comes_in_the_order_of_the_plan(self, install, make_plan, kind, value):
        install(kind, f"b = acme:{value}", f"a = acme:{value}")

        bound_plan = make_plan().bind(None)
        loaded = load_extensions(bound_plan, kind)

        assert [(plugin.decision.name, plugin.value.__name__) for plugin in loaded] == [("a", value), ("b", value)]
        assert [outcome.state for outcome in extension_outcomes(bound_plan, kind)] == ["active", "active"]

    def test_of_a_factory_the_object_comes(self, install, make_plan):
        install(ENDPOINT, "a = acme:Endpoint", "b = acme:config_taker")
        plan = make_plan(plugins__endpoint__enabled=["b", "a"], options={"b": {"name": "bonjour"}})

        assert [plugin.value.name for plugin in load_extensions(plan.bind(None), ENDPOINT)] == ["bonjour", "hello"]

    def test_none_is_loaded_that_is_not_selected(self, install, make_plan):
        install(ENDPOINT, "a = acme:Endpoint")

        assert load_extensions(make_plan().bind(None), ENDPOINT) == []

    @pytest.mark.parametrize(
        "kind, value, breach",
        [
            (STAT_LOGGER, "Half", "is not a subclass of vllm_ext.contracts.stat_logger.StatLoggerBase, but <class"),
            (LOGITS_PROCESSOR, "config_taker", "is not a subclass of vllm_ext.contracts.logits_processor.LogitsProc"),
            (
                STAT_LOGGER,
                "Silent",
                "acme.Silent does not implement log_engine_initialized, record; vllm_ext.contracts.",
            ),
            (LOGITS_PROCESSOR, "Idle", "acme.Idle does not implement __init__, is_argmax_invariant, update_state; "),
            (ENDPOINT, "Half", "which has no required_tasks, attach_router, init_state; it has to keep vllm_ext.contr"),
        ],
    )
    def test_one_that_does_not_keep_its_contract_is_named(self, install, make_plan, kind, value, breach):
        install(kind, f"a = acme:{value}")
        plan = make_plan(**{f"plugins__{kind.key}__enabled": ["a"]})

        with pytest.raises(PluginLoadError) as caught:
            load_extensions(plan.bind(None), kind)

        assert breach in str(caught.value.__cause__)
        assert str(caught.value).startswith(f"{kind.title} plugin 'a' of acme 0.1 failed: ContractError: ")

    def test_one_that_was_merely_found_and_fails_is_reported_once_and_the_rest_goes_on(
        self, install, make_plan, caplog
    ):
        install(STAT_LOGGER, "a = acme:Half", "b = acme:Logger")
        bound_plan = make_plan().bind(None)

        names = [[plugin.decision.name for plugin in load_extensions(bound_plan, STAT_LOGGER)] for _ in range(2)]

        assert names == [["b"], ["b"]]
        (message,) = caplog.messages
        assert message.startswith("stat logger plugin 'a' of acme 0.1 is left out, since it failed: ContractError: ")


class TestIOProcessors:
    CODE = """
from vllm_ext import IOProcessor
class Tables(IOProcessor):
    def pre_process(self, prompt, request_id=None, **kwargs): return prompt
    def post_process(self, outputs, request_id=None, **kwargs): return outputs
def tables(): return "acme.Tables"
class Half(IOProcessor):
    def parse_data(self, data): return data
    def post_process(self, outputs, request_id=None, **kwargs): return outputs
def half(): return "acme.Half"
def nothing(): return None
def other(): raise RuntimeError("was called")
"""

    def test_only_the_wanted_one_is_loaded(self, plugins, make_plan):
        lines = ["tables = acme:tables", "other = acme:other"]
        plugins.distribution("acme", {IO_PROCESSOR.groups[0]: lines}, {"acme.py": self.CODE})

        bound_plan = make_plan(plugins__io_processor__use="tables").bind(None)

        assert load_driver(bound_plan, IO_PROCESSOR, "tables").__name__ == "Tables"

    def test_one_that_declines_is_an_error(self, plugins, make_plan):
        plugins.distribution("acme", {IO_PROCESSOR.groups[0]: ["n = acme:nothing"]}, {"acme.py": self.CODE})

        with pytest.raises(PluginLoadError, match="io processor plugin 'n' of acme 0.1 declined: it returned None"):
            load_driver(make_plan(plugins__io_processor__use="n").bind(None), IO_PROCESSOR, "n")

    def test_nobody_but_the_error_says_that_it_failed(self, plugins, make_plan, caplog):
        plugins.distribution("acme", {IO_PROCESSOR.groups[0]: ["other = acme:other"]}, {"acme.py": self.CODE})

        with pytest.raises(PluginLoadError, match="io processor plugin 'other' of acme 0.1 failed: RuntimeError: was"):
            load_driver(make_plan(plugins__io_processor__use="other").bind(None), IO_PROCESSOR, "other")

        assert caplog.messages == []

    def test_one_that_lacks_a_method_fails_when_it_is_loaded(self, plugins, make_plan):
        plugins.distribution("acme", {IO_PROCESSOR.groups[0]: ["n = acme:half"]}, {"acme.py": self.CODE})

        with pytest.raises(
            PluginLoadError,
            match="'n' of acme 0.1 failed: ContractError: .* acme.Half does not implement pre_process; vllm_ext",
        ):
            load_driver(make_plan(plugins__io_processor__use="n").bind(None), IO_PROCESSOR, "n")

    def test_a_class_in_place_of_the_function_that_returns_its_path_is_told_what_is_wanted(self, plugins, make_plan):
        plugins.distribution("acme", {IO_PROCESSOR.groups[0]: ["n = acme:Tables"]}, {"acme.py": self.CODE})

        with pytest.raises(PluginLoadError) as caught:
            load_driver(make_plan(plugins__io_processor__use="n").bind(None), IO_PROCESSOR, "n")

        assert str(caught.value.__cause__) == (
            "io processor plugin 'n' of acme 0.1: 'acme:Tables' is the class itself; the entry point has to name a "
            "function that returns the class path, 'acme.Tables'"
        )
