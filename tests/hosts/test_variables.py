"""A plan in vLLM's variables: those that make it load just that, or an error where none do."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.distributions import GENERAL, PLATFORM, config, record

from vllm_ext.contracts.groups import (
    ENDPOINT_PLUGINS_GROUP,
    IO_PROCESSOR_PLUGINS_GROUP,
    KINDS,
    LOGITSPROCS_GROUP,
    STAT_LOGGER_PLUGINS_GROUP,
)
from vllm_ext.discovery import Provider, builtin_platforms
from vllm_ext.errors import ConfigError, PlatformUnavailable
from vllm_ext.hosts.variables import host_variables
from vllm_ext.plan import BoundPlan, resolve

VLLM = Provider("vllm", "0.32.0", "/site/vllm-0.32.0.dist-info")
GROUPS = (GENERAL, PLATFORM, STAT_LOGGER_PLUGINS_GROUP, ENDPOINT_PLUGINS_GROUP, LOGITSPROCS_GROUP)


def bound(*records, platform: str = "vllm:cpu", allow_list: str | None = None, **settings) -> BoundPlan:
    chosen = config(allow_list, host="vllm", platform__driver=platform, **settings)
    plan = resolve([*records, *builtin_platforms(VLLM)], chosen, {"vllm": VLLM})
    plan.require_valid()
    return plan.bind(plan.candidates()[0])


def plugins_of(*records, **settings) -> str:
    return host_variables(bound(*records, **settings), {})["VLLM_PLUGINS"]


def error_of(*records, environ=(), **settings) -> str:
    with pytest.raises(ConfigError) as caught:
        host_variables(bound(*records, **settings), dict(environ))
    return str(caught.value)


def test_names_are_those_of_what_is_used():
    records = (
        record("a"),
        record("b"),
        record("count", group=STAT_LOGGER_PLUGINS_GROUP),
        record("npu", group=PLATFORM),
    )

    assert plugins_of(*records, platform="npu", plugins__general__disabled=["b"]) == "a,npu,count"


def test_nothing_used_is_an_empty_list_which_allows_nothing():
    assert plugins_of(record("a"), plugins__general__enabled=[]) == ""


def test_vllms_own_cpu_is_forced():
    assert host_variables(bound(), {}) == {"VLLM_PLUGINS": "", "VLLM_TARGET_DEVICE": "cpu"}


@pytest.mark.parametrize("platform", ["npu", "cuda"])
def test_no_other_platform_is(platform):
    assert "VLLM_TARGET_DEVICE" not in host_variables(bound(record("npu", group=PLATFORM), platform=platform), {})


def test_a_plugin_named_cpu_is_not_vllms_own():
    variables = host_variables(bound(record("cpu", group=PLATFORM), platform="acme:cpu"), {})

    assert variables == {"VLLM_PLUGINS": "cpu"}


def test_without_a_platform_there_is_nothing_to_start():
    plan = bound().plan

    with pytest.raises(PlatformUnavailable, match=r"none of vLLM's own, so that no vLLM can run here"):
        host_variables(plan.bind(None), {})


def test_an_environment_that_forces_the_cpu_contradicts_another_platform():
    assert error_of(record("npu", group=PLATFORM), platform="npu", environ={"VLLM_TARGET_DEVICE": "CPU"}.items()) == (
        "vLLM cannot be given this plan: environment (VLLM_TARGET_DEVICE) is 'cpu', with which vLLM takes its own cpu "
        "platform, and the plan has platform plugin 'npu' of acme 1.0; unset it, or set platform.driver: cpu"
    )


def test_an_environment_that_forces_the_cpu_agrees_with_it():
    assert host_variables(bound(), {"VLLM_TARGET_DEVICE": "cpu"})["VLLM_TARGET_DEVICE"] == "cpu"


def test_one_name_for_what_is_used_and_what_is_not_cannot_be_said():
    text = error_of(record("a"), record("a", group=STAT_LOGGER_PLUGINS_GROUP), plugins__stat_logger__disabled=["a"])

    assert text == (
        "vLLM cannot be given this plan: stat logger plugin 'a' of acme 1.0 is not to be used (disabled: disabled by "
        "plugins.stat_logger.disabled), and general plugin 'a' of acme 1.0 is; VLLM_PLUGINS allows both or neither: "
        "uninstall one, or disable the other as well"
    )


def test_a_platform_plugin_of_that_name_does_not_matter_where_vllm_takes_its_own_cpu():
    records = (record("npu"), record("npu", group=PLATFORM))

    assert plugins_of(*records, plugins__general__enabled=["npu"]) == "npu"
    text = error_of(*records, platform="cuda", plugins__general__enabled=["npu"])
    assert "platform plugin 'npu' of acme 1.0 is not to be used" in text


def test_a_logits_processor_that_is_not_used_cannot_be_said():
    text = error_of(record("warm", group=LOGITSPROCS_GROUP), plugins__logits_processor__enabled=[])

    assert "vLLM loads every logits processor that is installed; uninstall acme, or let it be used" in text


def test_a_name_with_a_comma_cannot_be_said():
    assert "'a,b' has a comma in it, which separates names in VLLM_PLUGINS" in error_of(record("a,b"))


def test_all_that_cannot_be_said_is_in_one_error():
    text = error_of(record("a,b"), record("warm", group=LOGITSPROCS_GROUP), plugins__logits_processor__enabled=[])

    assert "'a,b' has a comma" in text
    assert "logits processor plugin 'warm'" in text


def test_a_copy_that_the_path_hides_does_not_matter():
    hidden = record("a", group=STAT_LOGGER_PLUGINS_GROUP, shadowed_by="/first/acme-1.0.dist-info")

    assert plugins_of(record("a"), hidden) == "a"


class TestIOProcessors:
    TABLES = record("tables", group=IO_PROCESSOR_PLUGINS_GROUP)

    def test_one_that_nobody_names_is_not_in_the_list(self):
        assert plugins_of(self.TABLES) == ""

    def test_one_that_is_used_is(self):
        assert plugins_of(self.TABLES, plugins__io_processor__use="tables") == "tables"

    def test_one_that_a_model_may_name_is(self):
        assert plugins_of(self.TABLES, plugins__io_processor__enabled=["tables"]) == "tables"
        assert host_variables(bound(self.TABLES, allow_list="tables"), {"VLLM_PLUGINS": "tables"})["VLLM_PLUGINS"] == (
            "tables"
        )

    def test_one_with_the_name_of_something_used_does_no_harm(self):
        assert plugins_of(record("tables"), self.TABLES) == "tables"

    def test_one_that_is_turned_off_must_not_have_it(self):
        text = error_of(record("tables"), self.TABLES, plugins__io_processor__disabled=["tables"])

        assert "io processor plugin 'tables' of acme 1.0 is not to be used" in text


def loaded_by_vllm(records, names) -> set:
    """vLLM 0.32's rule: of the names in its list all, of logits processors all; of endpoints the same as of others.
    With ``VLLM_TARGET_DEVICE=cpu``, as here, it asks no platform plugin.
    """
    asked = [r for r in records if r.group != PLATFORM]
    return {r for r in asked if r.group == LOGITSPROCS_GROUP or r.name in names}


RECORDS = st.lists(
    st.builds(record, st.sampled_from("abcd"), st.sampled_from(["acme", "other"]), st.sampled_from(GROUPS)),
    max_size=7,
    unique_by=lambda r: (r.group, r.name),
)
DISABLED = st.lists(st.sampled_from("abcd"), max_size=2)


@given(RECORDS, DISABLED, DISABLED, st.booleans())
def test_vllm_loads_what_the_plan_says_or_there_is_no_list_by_which_it_would(records, general, loggers, has_endpoints):
    bound_plan = bound(
        *records,
        plugins__general__disabled=general,
        plugins__stat_logger__disabled=loggers,
        plugins__endpoint__enabled="all" if has_endpoints else [],
    )
    wanted = {d.record for kind in KINDS for d in bound_plan.selected(kind.key)} & set(records)
    try:
        names = host_variables(bound_plan, {})["VLLM_PLUGINS"].split(",")
    except ConfigError:
        lists = itertools.chain.from_iterable(itertools.combinations("abcd", n) for n in range(5))
        assert all(loaded_by_vllm(records, names) != wanted for names in lists)
    else:
        assert loaded_by_vllm(records, names) == wanted
