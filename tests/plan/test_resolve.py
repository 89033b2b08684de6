"""What becomes of each record, and why; what is said about names that cannot be followed."""

from __future__ import annotations

import builtins
import json
import os
import socket
import sys

import pytest
from support.distributions import IN_TREE, PLATFORM, config, record

from vllm_ext.contracts.groups import EXECUTORS_GROUP, IN_TREE_PLATFORMS_GROUP, STAT_LOGGER
from vllm_ext.discovery import Provider
from vllm_ext.errors import AmbiguousPlugin, ConfigError, PluginLoadError, PluginNotFound
from vllm_ext.plan import plan_to_dict, resolve


def plan_of(*records, **settings):
    return resolve([*records, *IN_TREE], config(**settings))


def statuses(plan) -> dict[str, str]:
    return {f"{d.distribution}:{d.name}": d.status for d in plan.decisions if not d.in_tree}


def selected(plan, kind: str = "general") -> list[str]:
    return [decision.name for decision in plan.selected(kind)]


def only_error(plan) -> Exception:
    (error,) = plan.errors
    return error


class TestGeneralPlugins:
    def test_all_are_selected_where_nothing_is_said(self):
        plan = plan_of(record("a"), record("b"))

        (a, b) = plan.selected("general")
        assert (a.name, a.reason, str(a.origin), a.named) == ("a", "plugins.general.enabled is all", "default", False)
        assert b.name == "b"
        assert plan.errors == plan.notes == ()

    def test_without_a_list_the_order_is_that_of_distribution_and_name(self):
        records = [record("c", "acme"), record("z", "acme"), record("a", "zeta"), record("b", "beta")]

        assert selected(plan_of(*records)) == selected(plan_of(*reversed(records))) == ["c", "z", "b", "a"]

    def test_a_list_selects_its_names_in_its_order(self):
        plan = plan_of(record("a"), record("b"), record("c"), plugins__general__enabled=["c", "a"])

        assert selected(plan) == ["c", "a"]
        (b,) = plan.find("general", "b")
        assert (b.status, b.reason) == ("available", "plugins.general.enabled does not name it")
        (c,) = plan.find("general", "c")
        assert (c.reason, str(c.origin), c.named) == ("named in plugins.general.enabled", "command line (--set)", True)

    def test_a_name_that_stands_twice_in_the_list_counts_once(self):
        assert selected(plan_of(record("a"), plugins__general__enabled=["a", "acme:a", "a"])) == ["a"]

    def test_an_empty_list_selects_nothing(self):
        plan = plan_of(record("a"), plugins__general__enabled=[])

        assert (selected(plan), plan.errors) == ([], ())

    def test_disabled_beats_enabled(self):
        plan = plan_of(record("a"), record("b"), plugins__general__enabled=["a", "b"], plugins__general__disabled=["b"])

        (b,) = plan.find("general", "b")
        assert (b.status, b.reason, str(b.origin)) == (
            "disabled",
            "disabled by plugins.general.disabled",
            "command line (--set)",
        )
        assert (selected(plan), plan.errors) == (["a"], ())

    def test_a_disabled_name_that_is_not_installed_is_noted(self):
        plan = plan_of(record("models"), plugins__general__disabled=["model"])

        assert plan.errors == ()
        assert plan.notes == (
            "plugins.general.disabled (command line (--set)) disables 'model', which is not installed "
            "(did you mean 'models'?)",
        )
        assert statuses(plan) == {"acme:models": "selected", ":model": "missing"}


class TestMissingNames:
    def test_the_error_has_setting_installed_names_and_the_closest(self):
        plan = plan_of(record("models"), record("ops"), plugins__general__enabled=["model"])

        error = only_error(plan)
        assert isinstance(error, PluginNotFound)
        assert error.plugin == "model"
        assert str(error) == (
            "no general plugin 'model' is installed, which plugins.general.enabled (command line (--set)) names "
            "(did you mean 'models'?); installed: models, ops"
        )
        assert statuses(plan)[":model"] == "missing"
        with pytest.raises(PluginNotFound, match="no general plugin 'model'"):
            plan.require_valid()

    def test_a_name_in_another_group_is_pointed_out(self):
        plan = plan_of(record("npu", group=PLATFORM), plugins__general__enabled=["npu"])

        assert str(only_error(plan)).endswith(
            "installed: none. acme 1.0 declares that name in group 'vllm.platform_plugins': it is named in "
            "platform.driver"
        )

    def test_a_name_in_a_misspelt_group_is_pointed_out(self):
        plan = plan_of(record("npu", group="vllm.platform_plugin"), platform__driver="npu")

        assert str(only_error(plan)).endswith(
            "acme 1.0 declares that name in group 'vllm.platform_plugin', which nothing reads; "
            "'vllm.platform_plugins' is likely meant"
        )

    def test_a_name_of_a_hidden_distribution_is_pointed_out(self):
        plan = plan_of(record("a", shadowed_by="/src/acme.egg-info"), plugins__general__enabled=["a"])

        assert isinstance(only_error(plan), PluginNotFound)
        assert str(only_error(plan)).endswith(
            "/site/acme-1.0.dist-info declares it, but /src/acme.egg-info comes first on the path and hides it"
        )

    def test_a_name_whose_metadata_is_broken_is_an_error_with_the_fault(self):
        plan = plan_of(record("a", fault="line 2 is wrong"), plugins__general__enabled=["a"])

        assert isinstance(only_error(plan), PluginLoadError)
        assert "plugin 'a' of acme 1.0, named in plugins.general.enabled" in str(only_error(plan))
        assert str(only_error(plan)).endswith("cannot be used: line 2 is wrong")

    def test_a_missing_executor_is_an_error(self):
        plan = plan_of(engine__executor="multi")

        assert "no executor plugin 'multi' is installed" in str(only_error(plan))
        assert str(only_error(plan)).endswith("installed: uniproc")

    def test_all_errors_are_raised_in_one_text(self):
        plan = plan_of(plugins__general__enabled=["a"], platform__driver=["b", "cpu"])

        with pytest.raises(PluginNotFound) as caught:
            plan.require_valid()
        assert [line.partition(" is installed")[0] for line in str(caught.value).splitlines()] == [
            "no general plugin 'a'",
            "no platform plugin 'b'",
        ]


class TestRecordsThatCannotBeUsed:
    def test_a_hidden_distribution(self):
        (decision,) = plan_of(record("a", shadowed_by="/src")).find("general", "a")

        assert (decision.status, decision.reason) == (
            "shadowed",
            "/src comes first on the path and hides this distribution",
        )

    def test_broken_metadata(self):
        (decision,) = plan_of(record("a", fault="line 2 is wrong")).find("general", "a")

        assert (decision.status, decision.reason) == ("invalid", "line 2 is wrong")

    def test_an_unknown_group(self):
        plan = plan_of(record("a", group="vllm.general_plugin"))

        decision = plan.decisions[-1]
        assert (decision.status, decision.kind) == ("unknown", None)
        assert decision.reason == "vllm_ext has no group 'vllm.general_plugin' (did you mean 'vllm.general_plugins'?)"


class TestDuplicates:
    """One group and name in two distributions."""

    TWINS = (record("a", "acme"), record("b", "between"), record("a", "zeta"))

    @pytest.mark.parametrize("records", [TWINS, (TWINS[0], TWINS[2], TWINS[1])], ids=["apart", "adjacent"])
    def test_none_is_used_where_nobody_asked_for_the_name(self, records):
        plan = plan_of(*records)

        assert statuses(plan) == {"acme:a": "duplicate", "zeta:a": "duplicate", "between:b": "selected"}
        assert plan.errors == ()
        assert plan.notes == (
            "general plugin 'a' exists more than once, and none is used: acme 1.0 (a_module:register), "
            "zeta 1.0 (a_module:register). Disable all but one of 'acme:a' and 'zeta:a' in plugins.general.disabled",
        )

    def test_what_the_note_says_leaves_one_of_them_and_all_others(self):
        plan = plan_of(*self.TWINS, plugins__general__disabled=["zeta:a"])

        assert statuses(plan) == {"acme:a": "selected", "zeta:a": "disabled", "between:b": "selected"}
        assert plan.notes == ()

    def test_of_platforms_the_note_says_which_to_name(self):
        plan = plan_of(record("npu", "acme", PLATFORM), record("npu", "zeta", PLATFORM))

        assert plan.notes[0].endswith(". Write 'acme:npu' or 'zeta:npu' in platform.driver")

    @pytest.mark.parametrize(
        ("kind", "groups"),
        [
            ("platform", (PLATFORM, IN_TREE_PLATFORMS_GROUP)),
            ("stat_logger", STAT_LOGGER.groups),
        ],
    )
    def test_one_distributions_in_both_groups_of_a_kind_are_told_apart_by_nothing(self, kind, groups):
        twins = [record("x", group=group) for group in groups]
        plan = plan_of(*twins)

        assert [d.reason for d in plan.decisions if d.record in twins] == [
            "2 plugins of this kind have that name; from acme"
        ] * 2
        assert [d.name for d in plan.used(kind) if not d.in_tree] == []
        assert plan.notes[0].endswith(". It is for that distribution to declare the name once")

    def test_thousands_of_names_are_not_compared_with_each_other(self):
        class Name(str):
            compared = 0
            __hash__ = str.__hash__

            def __eq__(self, other):
                Name.compared += 1
                return str.__eq__(self, other)

        plan_of(*(record(Name(f"p{number}")) for number in range(300)))

        assert Name.compared < 300 * 20

    @pytest.mark.parametrize("records", [TWINS, (TWINS[0], TWINS[2], TWINS[1])], ids=["apart", "adjacent"])
    def test_it_is_an_error_where_the_name_was_asked_for(self, records):
        plan = plan_of(*records, plugins__general__enabled=["a"])

        assert isinstance(only_error(plan), AmbiguousPlugin)
        assert str(only_error(plan)).startswith("general plugin 'a', named in plugins.general.enabled (command line")
        assert str(only_error(plan)).endswith("Write 'acme:a' or 'zeta:a'")
        assert statuses(plan)["acme:a"] == "duplicate"

    def test_distribution_and_name_tell_them_apart(self):
        plan = plan_of(*self.TWINS, plugins__general__enabled=["zeta:a"])

        assert statuses(plan) == {"acme:a": "available", "zeta:a": "selected", "between:b": "available"}
        assert plan.errors == ()

    def test_the_distribution_may_be_spelt_as_its_author_does(self):
        plan = plan_of(record("a", "acme-plugins"), record("a", "zeta"), plugins__general__enabled=["Acme_Plugins:a"])

        assert [d.distribution for d in plan.selected("general")] == ["acme-plugins"]

    def test_disabling_one_leaves_the_other(self):
        plan = plan_of(*self.TWINS, plugins__general__disabled=["acme:a"])

        assert statuses(plan) == {"acme:a": "disabled", "zeta:a": "selected", "between:b": "selected"}

    def test_a_distribution_that_declares_a_name_twice_cannot_be_told_apart(self):
        plan = plan_of(record("a", value="x:f"), record("a", value="y:f"), plugins__general__enabled=["acme:a"])

        assert str(only_error(plan)).endswith(
            "acme 1.0 (x:f), acme 1.0 (y:f). It is for that distribution to declare the name once"
        )

    def test_one_name_in_two_groups_is_no_duplicate(self):
        plan = plan_of(record("a"), record("a", group=PLATFORM))

        assert [d.status for d in plan.decisions if d.name == "a"] == ["selected", "candidate"]


class TestPlatforms:
    NPU, GPU = record("npu", "acme", PLATFORM), record("gpu", "beta", PLATFORM)

    def test_auto_makes_all_of_them_candidates(self):
        plan = plan_of(self.NPU, self.GPU)

        assert [d.name for d in plan.candidates()] == ["npu", "gpu", "cpu"]
        assert not any(d.named for d in plan.candidates())

    def test_a_name_is_the_only_candidate(self):
        plan = plan_of(self.NPU, self.GPU, platform__driver="gpu")

        assert [(d.name, d.named) for d in plan.candidates()] == [("gpu", True)]

    def test_a_list_is_the_candidates_in_its_order(self):
        plan = plan_of(self.NPU, self.GPU, platform__driver=["npu", "cpu", "gpu"])

        assert [d.name for d in plan.candidates()] == ["npu", "cpu", "gpu"]

    def test_a_missing_name_in_a_list_is_an_error(self):
        plan = plan_of(self.NPU, platform__driver=["npu", "nqu"])

        assert "no platform plugin 'nqu' is installed" in str(only_error(plan))
        assert "(did you mean 'npu'?); installed: cpu, npu" in str(only_error(plan))

    def test_a_disabled_one_is_no_candidate(self):
        plan = plan_of(self.NPU, platform__disabled=["npu"])

        assert [d.name for d in plan.candidates()] == ["cpu"]
        assert statuses(plan) == {"acme:npu": "disabled"}

    def test_naming_only_disabled_ones_is_an_error_with_both_settings(self):
        error = only_error(plan_of(self.NPU, platform__driver="npu", platform__disabled=["npu"]))

        assert isinstance(error, ConfigError)
        assert str(error) == (
            "platform.driver (command line (--set)) names 'npu', which is not used: disabled by platform.disabled "
            "(command line (--set)). That leaves no platform to be used; change one of the two"
        )

    def test_an_empty_list_is_an_error(self):
        error = only_error(plan_of(platform__driver=[]))

        assert str(error).endswith("is an empty list; give auto, a name, or a list of names")

    def test_an_out_of_tree_one_with_the_name_of_an_in_tree_one_has_to_be_told_apart(self):
        cpu = record("cpu", "acme", PLATFORM)

        assert isinstance(only_error(plan_of(cpu, platform__driver="cpu")), AmbiguousPlugin)
        assert [d.distribution for d in plan_of(cpu, platform__driver="acme:cpu").candidates()] == ["acme"]
        assert len(plan_of(cpu).candidates()) == 2


class TestAllowList:
    """VLLM_PLUGINS: one list over all groups, applied after everything else."""

    def test_only_its_names_are_used_and_what_comes_with_vllm_ext(self):
        plan = plan_of(record("a"), record("b"), record("npu", group=PLATFORM), allow_list="a, npu")

        assert statuses(plan) == {"acme:a": "selected", "acme:b": "disabled", "acme:npu": "candidate"}
        assert [d.name for d in plan.candidates()] == ["npu", "cpu"]
        assert selected(plan, "executor") == ["uniproc"]
        (a,), (b,) = plan.find("general", "a"), plan.find("general", "b")
        assert (a.named, a.reason, str(a.origin)) == (True, "named in VLLM_PLUGINS", "environment (VLLM_PLUGINS)")
        assert (b.reason, str(b.origin)) == ("VLLM_PLUGINS does not name it", "environment (VLLM_PLUGINS)")

    def test_empty_allows_nothing_and_unset_everything(self):
        records = (record("a"), record("npu", group=PLATFORM))

        assert set(statuses(plan_of(*records, allow_list="")).values()) == {"disabled"}
        assert set(statuses(plan_of(*records)).values()) == {"selected", "candidate"}

    def test_a_kind_that_it_empties_is_noted(self):
        plan = plan_of(record("a"), record("npu", group=PLATFORM), allow_list="a")

        assert plan.notes == ("VLLM_PLUGINS leaves no out-of-tree platform plugin; it excludes 'npu'",)

    def test_a_name_that_matches_nothing_is_an_error(self):
        plan = plan_of(record("models"), allow_list="modles")

        assert isinstance(only_error(plan), PluginNotFound)
        assert str(only_error(plan)) == (
            "no plugin 'modles' is installed, which VLLM_PLUGINS names (did you mean 'models'?); "
            "installed: cpu, models, uniproc"
        )
        assert statuses(plan)[":modles"] == "missing"

    def test_what_comes_with_vllm_ext_may_be_named(self):
        assert plan_of(allow_list="cpu").errors == ()

    def test_something_named_elsewhere_that_it_excludes_is_an_error_that_shows_both(self):
        plan = plan_of(record("a"), record("b"), plugins__general__enabled=["b"], allow_list="a")

        assert isinstance(only_error(plan), ConfigError)
        assert str(only_error(plan)) == (
            "plugins.general.enabled (command line (--set)) names 'b', but VLLM_PLUGINS excludes it: it allows 'a'. "
            "Add 'b' there, or unset it"
        )

    def test_it_does_not_enable_what_the_settings_disable(self):
        plan = plan_of(record("a"), plugins__general__disabled=["a"], allow_list="a")

        assert (statuses(plan), plan.errors) == ({"acme:a": "disabled"}, ())

    def test_a_list_in_the_settings_still_chooses_among_its_names(self):
        plan = plan_of(record("a"), record("b"), plugins__general__enabled=["b"], allow_list="a,b")

        assert statuses(plan) == {"acme:a": "available", "acme:b": "selected"}

    def test_an_ambiguous_name_in_it_is_an_error_and_a_distribution_resolves_it(self):
        twins = (record("a", "acme"), record("a", "zeta"))

        assert isinstance(only_error(plan_of(*twins, allow_list="a")), AmbiguousPlugin)
        assert statuses(plan_of(*twins, allow_list="zeta:a")) == {"acme:a": "disabled", "zeta:a": "selected"}


def test_another_executor_can_be_chosen():
    plan = plan_of(record("remote", group=EXECUTORS_GROUP), engine__executor="remote")

    assert selected(plan, "executor") == ["remote"]
    assert [d.status for d in plan.find("executor", "uniproc")] == ["available"]


def test_it_reads_opens_and_imports_nothing(monkeypatch):
    marked = ("vllm-ext>=99; python_version > '3' and platform_machine != 'x'", "vllm>=1; extra == 'x'", "vllm<0.1")
    records = [
        record("a"),
        record("a", "zeta"),
        record("npu", group=PLATFORM),
        record("x", group="vllm.other"),
        record("z", requires=marked),
    ]
    settings = config(
        allow_list="a,b",
        plugins__general__enabled=["a", "c"],
        platform__driver=["npu", "cpux"],
        options={"d": {"x": 1}},
        worker__cls="acme.worker.Worker",
        allow_distributions=["acme==1.0", "beta"],
    )
    providers = {"vllm": Provider("vllm", "0.30", "/site"), "acme": Provider("other", "1", "/site")}
    running = False

    def guard(function):
        def guarded(*args, **kwargs):
            if running:
                raise AssertionError(f"resolve() called {function} with {args}")
            return function(*args, **kwargs)

        return guarded

    for module, name in ((builtins, "open"), (builtins, "__import__"), (os, "open"), (os, "listdir"), (os, "stat")):
        monkeypatch.setattr(module, name, guard(getattr(module, name)))
    monkeypatch.setattr(socket, "socket", guard(socket.socket))
    modules = set(sys.modules)
    running = True
    try:
        plan = resolve(records, settings, providers)
    finally:
        # What reports a failure opens files.
        running = False

    assert len(plan.errors) == 7
    assert json.dumps(plan_to_dict(plan))
    assert set(sys.modules) == modules
