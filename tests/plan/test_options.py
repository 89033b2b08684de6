"""Options: handed to the plugin that they name, and part of what processes compare."""

from __future__ import annotations

from support.distributions import IN_TREE, PLATFORM, config, record

from vllm_ext.errors import PluginNotFound
from vllm_ext.plan import resolve


def plan_of(*records, **settings):
    return resolve([*records, *IN_TREE], config(**settings))


def test_a_plugin_has_those_under_its_name():
    plan = plan_of(record("a"), record("b"), options={"a": {"x": 1}})
    a, b = plan.selected("general")

    assert plan.options_of(a) == {"x": 1}
    assert plan.options_of(b) == {}


def test_those_under_distribution_and_name_win():
    plan = plan_of(record("a"), options={"acme:a": {"x": 2}, "a": {"x": 1, "y": 1}})

    assert plan.options_of(plan.selected("general")[0]) == {"x": 2, "y": 1}


def test_they_are_a_copy():
    plan = plan_of(record("a"), options={"a": {"x": [1]}})
    decision = plan.selected("general")[0]

    plan.options_of(decision)["x"].append(2)

    assert plan.options_of(decision) == {"x": [1]}


def test_for_a_name_that_is_not_installed_they_are_an_error():
    plan = plan_of(record("models"), options={"model": {"x": 1}})

    (error,) = plan.errors
    assert isinstance(error, PluginNotFound)
    assert str(error).startswith(
        "no plugin 'model' is installed, which options (command line (--set)) names (did you mean 'models'?); "
        "installed: "
    )
    assert [d.status for d in plan.decisions if d.name == "model"] == ["missing"]


def test_for_a_plugin_that_is_not_used_they_are_no_error():
    assert plan_of(record("a"), options={"a": {"x": 1}}, plugins__general__disabled=["a"]).errors == ()


class TestFingerprint:
    def test_options_of_what_is_used_change_it(self):
        def fingerprint(**options):
            return plan_of(record("a"), options=options).bind(None).fingerprint

        assert len({fingerprint(), fingerprint(a={"x": 1}), fingerprint(a={"x": 2})}) == 3
        assert fingerprint(a={"x": 1, "y": 2}) == fingerprint(a={"y": 2, "x": 1})

    def test_options_of_what_is_not_used_do_not(self):
        off = {"plugins__general__disabled": ["a"]}

        assert (
            plan_of(record("a"), options={"a": {"x": 1}}, **off).bind(None).fingerprint
            == plan_of(record("a"), **off).bind(None).fingerprint
        )


def test_a_bound_plan_has_them_by_plugin_name_with_the_platforms_first():
    plan = plan_of(
        record("npu", "acme", PLATFORM), record("npu", "zeta"), options={"acme:npu": {"x": 1}, "zeta:npu": {"x": 2}}
    )
    npu = next(decision for decision in plan.candidates() if decision.name == "npu")

    assert plan.bind(npu).options == {"npu": {"x": 1}}
