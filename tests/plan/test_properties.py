"""What holds for any records and any settings."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from support.distributions import GENERAL, IN_TREE, PLATFORM, config, record

from vllm_ext.contracts.groups import EXECUTORS_GROUP
from vllm_ext.plan import resolve

NAMES = st.sampled_from(["a", "b", "c", "cpu"])
DISTRIBUTIONS = st.sampled_from(["acme", "beta", "vllm-ext"])
REFERENCES = st.one_of(NAMES, st.builds("{}:{}".format, DISTRIBUTIONS, NAMES))
RECORDS = st.lists(
    st.builds(
        record,
        NAMES,
        DISTRIBUTIONS,
        st.sampled_from([GENERAL, PLATFORM, EXECUTORS_GROUP, "vllm.other"]),
        value=st.sampled_from(["m:f", "n:f"]),
        fault=st.sampled_from([None, None, None, "broken"]),
        shadowed_by=st.sampled_from([None, None, None, "/other"]),
    ),
    max_size=8,
)
CONFIGS = st.builds(
    config,
    allow_list=st.none() | st.lists(REFERENCES, max_size=3).map(",".join),
    plugins__general__enabled=st.just("all") | st.lists(REFERENCES, max_size=3),
    plugins__general__disabled=st.lists(REFERENCES, max_size=2),
    platform__driver=st.just("auto") | REFERENCES | st.lists(REFERENCES, max_size=3),
    platform__disabled=st.lists(REFERENCES, max_size=2),
)
QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)


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
    plan = resolve(records, config)

    for decision in (*plan.selected("general"), *plan.candidates()):
        disabled = config.settings.plugins.general if decision.kind == "general" else config.settings.platform
        assert decision.name not in disabled.disabled
        assert f"{decision.distribution}:{decision.name}" not in disabled.disabled


@QUICK
@given(RECORDS, CONFIGS)
def test_what_the_allow_list_does_not_name_is_never_used(records, config):
    plan = resolve(records, config)

    for decision in (*plan.selected("general"), *plan.selected("executor"), *plan.candidates()):
        references = {decision.name, f"{decision.distribution}:{decision.name}"}
        assert config.allow_list is None or decision.in_tree or references & set(config.allow_list)


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
