"""A plan bound to its platform: what it leaves out, and what its fingerprint covers."""

from __future__ import annotations

import msgspec
import pytest
from support.distributions import IN_TREE, PLATFORM, config, record

from vllm_ext.plan import Outcome, resolve

NPU = record("npu", "acme", PLATFORM)
MODELS = record("models", "acme")
VERSIONS = {"vllm_ext": "0.1", "torch": "2.13", "python": "3.11"}


def bound(*records, platform: str | None = "cpu", states: dict[str, str] | None = None, versions=VERSIONS, **settings):
    """A plan bound to ``platform``, after its candidates came to ``states``."""
    plan = resolve([*records, *IN_TREE], config(**settings))
    chosen = next((d for d in plan.candidates() if d.name == platform), None)
    outcomes = [Outcome(d.key, (states or {})[d.name]) for d in plan.candidates() if d.name in (states or {})]
    return plan.bind(chosen, outcomes, versions)


def general(bound_plan) -> list[str]:
    return [decision.name for decision in bound_plan.selected("general")]


class TestGeneralPluginsOfOtherPlatforms:
    def test_they_are_left_out_and_shown_as_such(self):
        plan = bound(NPU, MODELS, record("other", "beta"), states={"npu": "passed_over"})

        assert general(plan) == ["other"]
        (outcome,) = [outcome for outcome in plan.outcomes if outcome.key.name == "models"]
        assert (outcome.state, outcome.detail) == (
            "passed_over",
            "platform 'acme:npu' of its distribution is not used, 'vllm-ext:cpu' is",
        )

    def test_a_platform_that_was_not_asked_for_is_passed_over(self):
        assert general(bound(NPU, MODELS, platform__driver="cpu")) == []

    def test_a_platform_that_is_disabled_is_passed_over(self):
        assert general(bound(NPU, MODELS, platform__disabled=["npu"])) == []

    @pytest.mark.parametrize("state", ["unavailable", "failed"])
    def test_a_platform_that_declined_or_failed_is_not_passed_over(self, state):
        assert general(bound(NPU, MODELS, states={"npu": state})) == ["models"]

    def test_they_stay_where_the_user_named_them(self):
        plan = bound(NPU, MODELS, platform__driver="cpu", plugins__general__enabled=["models"])

        assert general(plan) == ["models"]

    def test_they_stay_where_their_platform_won(self):
        second = record("npu2", "acme", PLATFORM)

        assert general(bound(NPU, second, MODELS, platform="npu", platform__driver="npu")) == ["models"]

    def test_they_stay_where_no_platform_was_bound(self):
        assert general(bound(NPU, MODELS, platform=None)) == ["models"]


class TestFingerprint:
    def test_the_same_plan_has_the_same(self):
        assert bound(NPU, MODELS).fingerprint == bound(MODELS, NPU).fingerprint
        assert len(bound().fingerprint) == 64

    @pytest.mark.parametrize(
        "change", [{"version": "1.1"}, {"name": "more"}, {"value": "x:f"}, {"distribution": "acme2"}]
    )
    def test_a_change_of_what_is_loaded_changes_it(self, change):
        assert bound(MODELS).fingerprint != bound(msgspec.structs.replace(MODELS, **change)).fingerprint

    def test_the_order_changes_it(self):
        one, other = record("a"), record("b")

        assert (
            bound(one, other, plugins__general__enabled=["a", "b"]).fingerprint
            != bound(one, other, plugins__general__enabled=["b", "a"]).fingerprint
        )

    def test_the_platform_changes_it(self):
        assert bound(NPU, platform="npu").fingerprint != bound(NPU, platform="cpu").fingerprint

    @pytest.mark.parametrize("key", ["attention__backend", "worker__cls", "communicator__cls"])
    def test_a_class_path_in_the_settings_changes_it(self, key):
        assert bound().fingerprint != bound(**{key: "acme.x.Y"}).fingerprint

    def test_the_custom_ops_change_it(self):
        assert bound().fingerprint != bound(custom_ops=["none"]).fingerprint

    @pytest.mark.parametrize("name", sorted(VERSIONS))
    def test_the_versions_change_it(self, name):
        assert bound().fingerprint != bound(versions={**VERSIONS, name: "9"}).fingerprint

    def test_what_is_not_loaded_does_not_change_it(self):
        assert bound(record("a"), plugins__general__disabled=["a"]).fingerprint == bound().fingerprint
        assert bound(NPU).fingerprint == bound().fingerprint

    def test_locations_do_not_change_it(self):
        moved = msgspec.structs.replace(MODELS, location="/elsewhere", editable=True)

        assert bound(moved).fingerprint == bound(MODELS).fingerprint
