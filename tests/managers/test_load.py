"""Single plugins, the plugins of a group, and the executor."""

from __future__ import annotations

import pytest
from support.distributions import GENERAL, PLATFORM

from vllm_ext.contracts.executor import Executor
from vllm_ext.contracts.groups import EXECUTORS_GROUP
from vllm_ext.errors import ContractError, PluginLoadError, PluginNotFound
from vllm_ext.managers import bind_platform, load_executor_cls, load_group
from vllm_ext.managers.planned import NamedPlugins

CODE = "def one(): raise RuntimeError\ndef two(): raise RuntimeError\n"


@pytest.fixture
def acme(plugins):
    """Two good plugins and a broken one."""
    entry_points = {GENERAL: ["two = acme:two", "one = acme:one", "broken = acme:three"], PLATFORM: ["npu = acme:one"]}
    plugins.distribution("acme", entry_points, {"acme.py": CODE})


def test_a_plugin_is_imported_and_not_called(acme, make_plan):
    manager = NamedPlugins(make_plan().find("general", "one"), namespace=GENERAL)
    (outcome,) = manager.outcomes

    assert manager.extensions[0].plugin.__name__ == "one"
    assert (outcome.state, outcome.error) == ("active", None)
    assert outcome.seconds > 0


def test_one_that_cannot_be_imported_has_an_outcome(acme, make_plan):
    manager = NamedPlugins(make_plan().find("general", "broken"), namespace=GENERAL)
    (outcome,) = manager.outcomes

    assert manager.extensions == []
    assert (outcome.state, outcome.detail) == ("failed", "AttributeError: module 'acme' has no attribute 'three'")
    assert outcome.traceback.endswith(f"{outcome.detail}\n")


def test_the_entry_point_keeps_its_distribution(acme, make_plan):
    (extension,) = NamedPlugins(make_plan().find("general", "one"), namespace=GENERAL)

    assert (extension.entry_point.dist.name, extension.entry_point.dist.version) == ("acme", "0.1")


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

        assert "(did you mean 'vllm.general_plugins'?); known: vllm.general_plugins, vllm.platform_plugins" in str(
            caught.value
        )


class TestExecutor:
    @pytest.fixture
    def executors(self, plugins):
        code = (
            "from vllm_ext.contracts.executor import Executor\nclass Good(Executor): pass\n"
            "class Bad: pass\ndef __getattr__(name): raise OSError('no cluster')\n"
        )
        lines = ["good = acme:Good", "bad = acme:Bad", "broken = acme:Broken"]
        plugins.distribution("acme", {EXECUTORS_GROUP: lines}, {"acme.py": code})

    def load(self, make_plan, name: str) -> type[Executor]:
        plan = make_plan(engine__executor=name)
        return load_executor_cls(plan.bind(None), name)

    @pytest.mark.parametrize("name", ["good", "acme:good"])
    def test_the_class_that_the_settings_name(self, executors, make_plan, name):
        executor_cls = self.load(make_plan, name)

        assert (executor_cls.__module__, executor_cls.__name__) == ("acme", "Good")

    def test_another_class_is_a_breach_of_the_contract(self, executors, make_plan):
        with pytest.raises(ContractError) as caught:
            self.load(make_plan, "bad")

        assert str(caught.value).startswith(
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
            load_executor_cls(bound_plan, "bad")
