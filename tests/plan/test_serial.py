"""Plans as JSON: what is written is read back as the same plan."""

from __future__ import annotations

import json

import pytest
from support.distributions import IN_TREE, PLATFORM, config, record

from vllm_ext.errors import ContractError, PluginNotFound, Unavailable
from vllm_ext.plan import SCHEMA_VERSION, BoundPlan, Outcome, Plan, plan_from_dict, plan_to_dict, resolve

RECORDS = (
    record("a", requires=("vllm>=1",)),
    record("a", "zeta", shadowed_by="/x"),
    record("npu", "acme", PLATFORM, editable=True),
    record("x", group="vllm.other"),
    record("b", fault="line 2"),
    *IN_TREE,
)


@pytest.fixture
def plan() -> Plan:
    settings = config(
        plugins__general__enabled=["a", "c"],
        options={"npu": {"x": [1, {"y": None}]}},
        engine__seed=7,
        allow_list="a,npu",
    )
    return resolve(RECORDS, settings)


def through_json(values):
    return json.loads(json.dumps(values))


def test_a_plan_comes_back_the_same(plan):
    back = plan_from_dict(through_json(plan_to_dict(plan)), Plan)

    assert back.decisions == plan.decisions
    assert (back.settings, back.notes) == (plan.settings, plan.notes)
    assert [(type(e), str(e), e.plugin) for e in back.errors] == [(type(e), str(e), e.plugin) for e in plan.errors]
    assert plan_to_dict(back) == plan_to_dict(plan)
    assert type(back.errors[0]) is PluginNotFound


def test_a_bound_plan_comes_back_with_its_fingerprint(plan):
    candidate = plan.candidates()[0]
    errors = [ValueError("x"), Unavailable("no device"), ContractError("no platform", plugin="npu")]
    outcomes = [Outcome(candidate.key, "active", seconds=0.5), *(Outcome.of_error(candidate, e) for e in errors)]
    bound = plan.bind(candidate, outcomes, {"python": "3.11"})

    back = plan_from_dict(through_json(plan_to_dict(bound)), BoundPlan)

    assert back.fingerprint == bound.fingerprint
    assert back.outcomes == bound.outcomes
    assert back.platform == candidate
    assert back.selected("general") == bound.selected("general")


def test_it_says_its_version(plan):
    assert plan_to_dict(plan)["schema_version"] == SCHEMA_VERSION == 1


def test_another_version_is_refused(plan):
    with pytest.raises(ValueError, match="the plan has schema_version 2; this vllm_ext reads 1"):
        plan_from_dict(plan_to_dict(plan) | {"schema_version": 2}, Plan)


def test_another_form_is_refused_with_the_place(plan):
    with pytest.raises(ValueError, match=r"not a Plan: Expected `array`, got `int` - at `\$.decisions`"):
        plan_from_dict(plan_to_dict(plan) | {"decisions": 1}, Plan)


def test_a_bound_plan_that_was_changed_is_refused(plan):
    values = through_json(plan_to_dict(plan.bind(None)))
    values["versions"] = {"python": "2.7"}

    with pytest.raises(ValueError, match="the plan says its fingerprint is"):
        plan_from_dict(values, BoundPlan)
