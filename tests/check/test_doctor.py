"""What doctor makes of plans and of loads: how bad it is, and what to do."""

from __future__ import annotations

import pytest
from support.distributions import GENERAL, IN_TREE, PLATFORM, config, record

from vllm_ext.check.doctor import by_severity, examine_loads, examine_plan, without_repetitions
from vllm_ext.discovery import Finding
from vllm_ext.errors import Unavailable
from vllm_ext.managers.child import LoadReport
from vllm_ext.plan import Outcome, resolve


def report(error: BaseException | None = None, effects=(), **settings) -> LoadReport:
    """Of the platform ``npu``, which is named where a driver is set."""
    plan = resolve([record("npu", "acme", PLATFORM), *IN_TREE], config(**settings))
    (decision,) = plan.find("platform", "npu")
    outcome = Outcome(decision.key, "active") if error is None else Outcome.of_error(decision, error)
    return LoadReport(decision, outcome, tuple(effects))


def severities(findings) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.code, finding.subject) for finding in findings]


class TestLoads:
    def test_a_plugin_that_works_is_no_finding(self):
        assert list(examine_loads([report()])) == []

    def test_a_failure_of_one_that_was_found_is_a_warning(self):
        (finding,) = examine_loads([report(OSError("no licence"))])

        assert severities([finding]) == [("warning", "load-failed", "acme:npu")]
        assert finding.text == "platform plugin 'npu' of acme 1.0 fails: OSError: no licence"
        assert (
            finding.remedy == "See its traceback with 'vllm-ext show acme:npu --load'; to go on without it, disable it."
        )

    def test_its_kind_is_written_as_in_other_messages(self):
        plan = resolve([record("noisy", "acme", "vllm.stat_logger_plugins")], config())
        (decision,) = plan.find("stat_logger", "noisy")

        (finding,) = examine_loads([LoadReport(decision, Outcome.of_error(decision, OSError("no licence")))])

        assert finding.text == "stat logger plugin 'noisy' of acme 1.0 fails: OSError: no licence"

    def test_a_failure_of_one_that_was_named_is_an_error(self):
        found = examine_loads([report(OSError("no licence"), platform__driver="npu")])

        assert severities(found) == [("error", "load-failed", "acme:npu")]

    def test_one_that_declines_is_a_finding_only_where_it_was_named(self):
        declined = Unavailable("no device")

        assert list(examine_loads([report(declined)])) == []
        (finding,) = examine_loads([report(declined, platform__driver="npu")])
        assert severities([finding]) == [("error", "load-declined", "acme:npu")]
        assert finding.text == "platform plugin 'npu' of acme 1.0, which is named, declines: no device"

    def test_what_it_does_to_its_process_is_a_warning_each(self):
        found = list(examine_loads([report(effects=["changes sys.path", "leaves threads running: t"])]))

        assert severities(found) == [("warning", "side-effect", "acme:npu")] * 2
        assert found[0].text == "platform plugin 'npu' of acme 1.0 changes sys.path"


class TestPlans:
    def examine(self, *records, **settings) -> list[Finding]:
        return list(examine_plan(resolve([*records, *IN_TREE], config(**settings))))

    def test_a_sound_plan_has_no_findings(self):
        assert self.examine(record("a")) == []

    @pytest.mark.parametrize(
        ("settings", "remedy"),
        [
            (
                {"plugins__general__enabled": ["b"]},
                "Install what provides it, or correct the name where it is written.",
            ),
            ({"allow_distributions": ["a b"]}, "Correct the setting; 'vllm-ext config sample' shows all of them."),
        ],
    )
    def test_what_the_settings_ask_for_in_vain_is_an_error(self, settings, remedy):
        errors = [finding for finding in self.examine(**settings) if finding.severity == "error"]

        assert [finding.remedy for finding in errors] == [remedy]

    def test_a_note_of_the_plan_is_a_warning(self):
        assert severities(self.examine(plugins__general__disabled=["ghost"])) == [("warning", "plan", "settings")]

    @pytest.mark.parametrize(
        "group, settings, why",
        [
            (GENERAL, {"plugins__general__disabled": ["a"]}, "disabled by plugins.general.disabled"),
            ("vllm.endpoint_plugins", {}, "plugins.endpoint.enabled does not name it"),
        ],
    )
    def test_options_for_a_plugin_that_is_not_used_are_a_note(self, group, settings, why):
        (finding,) = self.examine(record("a", group=group), options={"acme:a": {"x": 1}}, **settings)

        assert (finding.severity, finding.code, finding.subject) == ("note", "unused-options", "acme:a")
        assert finding.text == (
            f"options are given for 'acme:a', and the settings use no plugin of that name: 'a' of acme 1.0: {why}"
        )

    def test_options_that_one_of_several_plugins_gets_are_no_finding(self):
        unused = record("a", group="vllm.endpoint_plugins")

        assert self.examine(record("a"), unused, options={"a": {"x": 1}}) == []

    def test_options_for_what_is_not_installed_are_one_error(self):
        findings = self.examine(record("a", group="acme.plugins"), options={"a": {"x": 1}, "b": {}})

        assert [finding.severity for finding in findings] == ["error", "error"]

    def test_a_requirement_on_vllm_is_a_note_under_the_embedded_host(self):
        (finding,) = self.examine(record("a", requires=("vllm>=1",)))

        assert severities([finding]) == [("note", "requirement", "acme:a")]
        assert "acme requires vllm>=1, which is not installed; the host is embedded" in finding.text

    def test_of_duplicates_the_plans_own_words_are_kept(self):
        plan = resolve([record("a"), record("a", "zeta"), *IN_TREE], config())
        metadata = [
            Finding("warning", "ambiguous-name", "a", "declared twice", ""),
            Finding("warning", "ambiguous-name", "b", "declared twice", ""),
            Finding("warning", "repeated-target", "a", "twice the same", ""),
        ]

        assert without_repetitions(metadata, plan) == metadata[1:]


def test_errors_come_first_and_each_once():
    note, error = Finding("note", "b", "x", "", ""), Finding("error", "c", "y", "", "")

    assert by_severity([note, error, note]) == [error, note]
