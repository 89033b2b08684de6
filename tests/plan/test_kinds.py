"""Kinds of plugins with rules of their own: IO processors, endpoints, and the rest that are extensions."""

from __future__ import annotations

import pytest
import yaml
from support.distributions import IN_TREE, config, record

from vllm_ext.contracts.groups import ENDPOINT, EXECUTOR, IO_PROCESSOR, KINDS, LOGITS_PROCESSOR, STAT_LOGGER
from vllm_ext.errors import AmbiguousPlugin, ConfigError, PluginNotFound
from vllm_ext.plan import resolve
from vllm_ext.plan.names import in_yaml
from vllm_ext.plan.rules import RULES


def plan_of(kind, *names, **settings):
    return resolve([*(record(name, group=kind.groups[0]) for name in names), *IN_TREE], config(**settings))


def statuses(plan, kind) -> dict[str, str]:
    return {decision.name: decision.status for decision in plan.decisions if decision.kind == kind.key}


def test_every_kind_has_a_rule():
    assert [rule.kind for rule in RULES] == list(KINDS)


@pytest.mark.parametrize("kind", [STAT_LOGGER, LOGITS_PROCESSOR], ids=lambda kind: kind.key)
class TestExtensions:
    def test_all_are_selected_by_default(self, kind):
        assert statuses(plan_of(kind, "a", "b"), kind) == {"a": "selected", "b": "selected"}

    def test_a_list_selects_in_its_order(self, kind):
        plan = plan_of(kind, "a", "b", "c", **{f"plugins__{kind.key}__enabled": ["c", "a"]})

        assert [decision.name for decision in plan.selected(kind.key)] == ["c", "a"]

    def test_disabled_beats_enabled(self, kind):
        key = f"plugins__{kind.key}__"

        assert statuses(plan_of(kind, "a", **{f"{key}enabled": ["a"], f"{key}disabled": ["a"]}), kind) == {
            "a": "disabled"
        }

    def test_vllm_plugins_filters_them_like_every_group(self, kind):
        plan = plan_of(kind, "a", "b", allow_list="a")

        assert statuses(plan, kind) == {"a": "selected", "b": "disabled"}


class TestStatLoggersThatComeWithIt:
    IN_TREE = (
        record("logging", "vllm-ext", "vllm_ext.stat_loggers"),
        record("jsonl", "vllm-ext", "vllm_ext.stat_loggers"),
    )

    def statuses(self, **settings) -> dict[str, str]:
        plan = resolve([record("a", group=STAT_LOGGER.groups[0]), *self.IN_TREE, *IN_TREE], config(**settings))
        return statuses(plan, STAT_LOGGER)

    def test_they_are_off_by_default_and_those_of_others_on(self):
        assert self.statuses() == {"a": "selected", "logging": "available", "jsonl": "available"}

    def test_the_reason_is_the_setting(self):
        plan = resolve([*self.IN_TREE, *IN_TREE], config())

        assert {d.reason for d in plan.decisions if d.kind == "stat_logger"} == {"engine.disable_log_stats is true"}

    def test_the_setting_turns_them_on(self):
        assert set(self.statuses(engine__disable_log_stats=False).values()) == {"selected"}

    def test_a_list_turns_on_what_it_names(self):
        assert self.statuses(plugins__stat_logger__enabled=["logging"]) == {
            "logging": "selected",
            "a": "available",
            "jsonl": "available",
        }

    def test_vllm_plugins_turns_on_what_it_names(self):
        assert self.statuses(allow_list="logging") == {
            "a": "disabled",
            "logging": "selected",
            "jsonl": "available",
        }

    def test_disabled_beats_the_setting(self):
        found = self.statuses(engine__disable_log_stats=False, plugins__stat_logger__disabled=["jsonl"])

        assert found == {"a": "selected", "logging": "selected", "jsonl": "disabled"}


class TestEndpoints:
    def test_none_is_used_unless_it_is_named(self):
        assert statuses(plan_of(ENDPOINT, "a", "b"), ENDPOINT) == {"a": "available", "b": "available"}
        assert statuses(plan_of(ENDPOINT, "a", "b", plugins__endpoint__enabled=["b"]), ENDPOINT) == {
            "a": "available",
            "b": "selected",
        }

    def test_vllm_plugins_turns_on_what_it_names(self):
        plan = plan_of(ENDPOINT, "a", "b", allow_list="a")

        assert statuses(plan, ENDPOINT) == {"a": "selected", "b": "disabled"}
        assert plan.selected("endpoint")[0].named

    def test_an_empty_list_of_the_user_stays_empty(self):
        plan = plan_of(ENDPOINT, "a", allow_list="a", plugins__endpoint__enabled=[])

        assert statuses(plan, ENDPOINT) == {"a": "available"}


class TestIOProcessors:
    def test_none_is_selected_where_none_is_to_be_used(self):
        assert statuses(plan_of(IO_PROCESSOR, "a"), IO_PROCESSOR) == {"a": "available"}

    def test_the_one_to_be_used_is_selected_alone(self):
        plan = plan_of(IO_PROCESSOR, "a", "b", plugins__io_processor__use="b")

        assert statuses(plan, IO_PROCESSOR) == {"a": "available", "b": "selected"}

    def test_one_that_is_not_installed_is_an_error(self):
        (error,) = plan_of(IO_PROCESSOR, "table", plugins__io_processor__use="tabel").errors

        assert isinstance(error, PluginNotFound)
        assert str(error).startswith(
            "no io processor plugin 'tabel' is installed, which plugins.io_processor.use (command line (--set)) names "
            "(did you mean 'table'?)"
        )

    def test_one_that_is_not_enabled_is_an_error_that_shows_both(self):
        settings = {"plugins__io_processor__use": "b", "plugins__io_processor__enabled": ["a"]}

        plan = plan_of(IO_PROCESSOR, "a", "b", **settings)

        (error,) = plan.errors
        assert isinstance(error, ConfigError)
        assert str(error) == (
            "plugins.io_processor.use (command line (--set)) names 'b', but plugins.io_processor.enabled (command line "
            "(--set)) does not: it allows 'a'. Add 'b' there"
        )
        assert statuses(plan, IO_PROCESSOR) == {"a": "available", "b": "available"}

    def test_a_name_that_is_enabled_and_not_installed_is_an_error(self):
        (error,) = plan_of(IO_PROCESSOR, "a", plugins__io_processor__enabled=["b"]).errors

        assert "no io processor plugin 'b' is installed, which plugins.io_processor.enabled" in str(error)

    def test_a_name_of_two_distributions_has_to_be_told_apart(self):
        group = IO_PROCESSOR.groups[0]
        twins = [record("a", "acme", group), record("a", "zeta", group), *IN_TREE]

        (error,) = resolve(twins, config(plugins__io_processor__use="a")).errors
        plan = resolve(twins, config(plugins__io_processor__use="zeta:a"))

        assert isinstance(error, AmbiguousPlugin)
        assert [decision.distribution for decision in plan.selected("io_processor")] == ["zeta"]


class TestNamesThatNobodyGave:
    def test_an_executor_of_another_that_is_called_like_the_default_does_not_stop_the_start(self):
        plan = plan_of(EXECUTOR, "uniproc")

        assert plan.errors == ()
        assert [decision.distribution for decision in plan.selected("executor")] == ["vllm-ext"]

    def test_where_it_was_named_the_two_have_to_be_told_apart(self):
        (error,) = plan_of(EXECUTOR, "uniproc", engine__executor="uniproc").errors

        assert isinstance(error, AmbiguousPlugin)


def test_auto_in_a_list_of_platforms_is_an_error():
    (error,) = plan_of(EXECUTOR, platform__driver=["auto", "cpu"]).errors

    assert (
        str(error) == "platform.driver (command line (--set)) lists 'auto', which stands alone; in a list, give names"
    )


@pytest.mark.parametrize(
    ("key", "word"),
    [("platform.driver", "auto"), ("plugins.general.enabled", "all"), ("plugins.endpoint.enabled", "all")],
)
def test_the_word_for_everything_is_an_error_also_where_it_is_all_that_a_list_has(key, word):
    (error,) = plan_of(EXECUTOR, **{key.replace(".", "__"): [word]}).errors

    assert str(error) == f"{key} (command line (--set)) lists {word!r}, which stands alone; in a list, give names"


def test_that_no_platform_is_left_is_noted():
    assert plan_of(EXECUTOR, platform__disabled=["cpu"]).notes == (
        "no platform is left that may be used, so that no engine can be built",
    )


def test_an_io_processor_that_is_named_and_disabled_is_an_error():
    settings = {"plugins__io_processor__use": "a", "plugins__io_processor__disabled": ["a"]}

    (error,) = plan_of(IO_PROCESSOR, "a", **settings).errors

    assert str(error).endswith("That leaves no io processor to be used; change one of the two")


def test_a_host_that_is_not_there_is_an_error():
    (error,) = plan_of(EXECUTOR, host="vllm").errors

    assert str(error) == (
        "host (command line (--set)) is 'vllm', and no installed distribution provides it; install vLLM, or set host: "
        "embedded"
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("npu", "npu"),
        ("acme:npu-2", "acme:npu-2"),
        ("off", '"off"'),
        ("a,b", '"a,b"'),
        ("x: y", '"x: y"'),
        ("1", '"1"'),
    ],
)
def test_a_name_in_a_line_to_copy_is_valid_yaml(name, written):
    assert in_yaml(name) == written
    assert yaml.safe_load(f"[{written}]") == [name]
