"""What keeps code out whatever asks for it: allowed distributions, safe mode; both for class paths as well."""

from __future__ import annotations

import pytest
from support.distributions import IN_TREE, PLATFORM, config, record

from vllm_ext.config import Config
from vllm_ext.discovery import Provider
from vllm_ext.errors import ConfigError
from vllm_ext.plan import modules_in_question, resolve


def plan_of(*records, providers=None, safe_mode=False, **settings):
    given = config(**settings)
    if safe_mode:
        given = Config(given.settings, given.origins, given.allow_list, safe_mode=True)
    return resolve([*records, *IN_TREE], given, providers or {})


def status(plan, name="a") -> tuple[str, str]:
    (decision,) = plan.find("general", name)
    return decision.status, decision.reason


class TestAllowedDistributions:
    @pytest.mark.parametrize("allowed", [["acme"], ["Acme"], ["acme==1.0"], ["acme>=0.9,<2"], ["beta", "acme"]])
    def test_what_is_listed_may_be_used(self, allowed):
        plan = plan_of(record("a"), allow_distributions=allowed)

        assert status(plan)[0] == "selected"
        assert plan.errors == ()

    @pytest.mark.parametrize("allowed", [[], ["acmee"], ["beta"]])
    def test_what_is_not_listed_is_not_used(self, allowed):
        plan = plan_of(record("a"), allow_distributions=allowed)

        assert status(plan) == ("disabled", "allow_distributions does not list acme")
        assert str(plan.find("general", "a")[0].origin) == "command line (--set)"

    def test_another_version_is_not_used(self):
        assert status(plan_of(record("a"), allow_distributions=["acme==1.2"])) == (
            "disabled",
            "allow_distributions lists acme==1.2, and 1.0 is installed",
        )

    def test_what_comes_with_vllm_ext_needs_no_entry(self):
        plan = plan_of(allow_distributions=[])

        assert [d.name for d in plan.candidates()] == ["cpu"]
        assert plan.errors == ()

    def test_a_named_plugin_of_another_distribution_is_an_error_that_shows_both(self):
        plan = plan_of(record("a"), allow_distributions=["beta"], plugins__general__enabled=["a"])

        (error,) = plan.errors
        assert isinstance(error, ConfigError)
        assert str(error) == (
            "plugins.general.enabled (command line (--set)) names 'a' of acme 1.0, but allow_distributions (command "
            "line (--set)) does not list acme. Add 'acme' there, or do not name the plugin"
        )

    def test_an_element_that_nothing_installed_is_of_is_a_note_with_the_closest(self):
        plan = plan_of(record("a", "acme-gpu"), record("b", "beta"), allow_distributions=["acme-gpuu==1.0", "Beta"])

        assert plan.errors == ()
        assert plan.notes == (
            "allow_distributions (command line (--set)) lists 'acme-gpuu==1.0', and no plugin that is installed, nor a "
            "class path in the settings, is of that distribution (did you mean 'acme-gpu'?); plugins are of: "
            "acme-gpu, beta",
        )

    @pytest.mark.parametrize("allowed", [None, [], ["acme"], ["Acme==9"], ["vllm_ext"], ["acme", "acme-plugins"]])
    def test_of_other_elements_there_is_no_note(self, allowed):
        providers = {"other": Provider("acme-plugins", "1.0", "/site")}

        assert plan_of(record("a"), providers=providers, allow_distributions=allowed).notes == ()

    @pytest.mark.parametrize("element", ["acme=1.2", "acme @ https://example.org/a.whl", "acme; python_version > '3'"])
    def test_an_element_of_another_form_is_an_error(self, element):
        (error,) = plan_of(allow_distributions=[element]).errors

        assert str(error) == (
            f"allow_distributions (command line (--set)) holds {element!r}; an element is a name, such as acme, or "
            "acme==1.2"
        )


class TestSafeMode:
    def test_no_out_of_tree_plugin_is_used(self):
        plan = plan_of(record("a"), record("npu", group=PLATFORM), safe_mode=True)

        assert status(plan) == ("disabled", "VLLM_EXT_SAFE_MODE leaves out all out-of-tree plugins")
        assert [d.name for d in plan.candidates()] == ["cpu"]
        assert plan.errors == ()

    def test_a_name_in_a_list_is_left_out_with_a_note(self):
        plan = plan_of(record("a"), safe_mode=True, plugins__general__enabled=["a"])

        assert plan.errors == ()
        assert plan.notes == (
            "plugins.general.enabled (command line (--set)) names 'a', which is not used: VLLM_EXT_SAFE_MODE leaves "
            "out all out-of-tree plugins",
        )

    def test_a_platform_that_is_the_only_one_named_is_an_error(self):
        plan = plan_of(record("npu", group=PLATFORM), safe_mode=True, platform__driver="npu")

        (error,) = plan.errors
        assert str(error).startswith("platform.driver (command line (--set)) names 'npu', which is not used: VLLM_EXT")
        assert str(error).endswith("That leaves no platform to be used; change one of the two")

    def test_a_name_in_vllm_plugins_is_no_error(self):
        assert plan_of(record("a"), safe_mode=True, allow_list="a").errors == ()

    @pytest.mark.parametrize("key", ["worker__cls", "communicator__cls", "attention__backend", "engine__scheduler_cls"])
    def test_a_class_path_is_left_out_with_a_note(self, key):
        plan = plan_of(safe_mode=True, **{key: "acme.worker.Worker"})
        section, name = key.split("__")

        assert getattr(getattr(plan.settings, section), name) == "auto"
        assert plan.notes == (
            f"{section}.{name} (command line (--set)) names 'acme.worker.Worker', which is not used: "
            "VLLM_EXT_SAFE_MODE is on",
        )

    def test_of_a_list_of_class_paths_each_has_a_note(self):
        plan = plan_of(safe_mode=True, engine__logits_processors=["acme.one:One", "acme.two:Two"])

        assert plan.settings.engine.logits_processors == []
        assert [note.partition(", which")[0].rpartition(" ")[2] for note in plan.notes] == [
            "'acme.one:One'",
            "'acme.two:Two'",
        ]


class TestClassPaths:
    """Class paths in the settings obey the allowed distributions."""

    PATH = "acme.worker.Worker"

    def test_of_an_allowed_distribution_it_may_be_used(self):
        providers = {"acme.worker": Provider("acme-plugins", "1.0", "/site")}

        plan = plan_of(providers=providers, worker__cls=self.PATH, allow_distributions=["acme-plugins"])

        assert plan.errors == ()
        assert plan.settings.worker.cls == self.PATH

    def test_of_another_distribution_it_is_an_error(self):
        providers = {"acme.worker": Provider("acme-plugins", "1.0", "/site")}

        (error,) = plan_of(providers=providers, worker__cls=self.PATH, allow_distributions=["beta"]).errors

        assert str(error) == (
            "worker.cls (command line (--set)) names 'acme.worker.Worker', but allow_distributions does not list "
            "acme-plugins. Add 'acme-plugins' there"
        )

    def test_of_no_distribution_it_is_an_error(self):
        (error,) = plan_of(worker__cls=self.PATH, allow_distributions=["beta"]).errors

        assert "no installed distribution provides module 'acme.worker', and allow_distributions admits only" in str(
            error
        )

    def test_without_a_list_it_may_come_from_anywhere(self):
        assert plan_of(worker__cls=self.PATH).errors == ()

    def test_our_own_need_no_entry(self):
        assert plan_of(worker__cls="vllm_ext.worker.worker.Worker", allow_distributions=[]).errors == ()

    def test_whose_module_has_to_be_looked_up_is_known_beforehand(self):
        limited = config(worker__cls=self.PATH, attention__backend="beta:Backend", allow_distributions=[])

        assert modules_in_question([], config(worker__cls=self.PATH)) == set()
        assert modules_in_question([], limited) == {"acme.worker", "beta"}
        assert modules_in_question([record("a", requires=("vllm>=1",))], config()) == {"vllm"}
        assert modules_in_question([record("a", requires=("vllm-ext>=1", "vllm_ext"))], config()) == set()
        assert modules_in_question([], config(host="vllm")) == {"vllm"}
