"""The IO processor of an engine: the user's choice, or the model's among those that the user allowed by name."""

from __future__ import annotations

import pytest
from support.distributions import IN_TREE, config, record

from vllm_ext.config import Config
from vllm_ext.contracts.groups import GENERAL_PLUGINS_GROUP, IO_PROCESSOR
from vllm_ext.plan import IOProcessorChoice, ModelsWish, choose_io_processor, resolve

USE, ENABLED, DISABLED = (f"plugins__io_processor__{key}" for key in ("use", "enabled", "disabled"))


def plugin(name: str, distribution: str = "acme"):
    return record(name, distribution, IO_PROCESSOR.groups[0])


def choice(*records, wish: str | None = "table", allow_list: str | None = None, **settings) -> IOProcessorChoice:
    """What is chosen where these are installed, and a model names ``wish``."""
    settings = config(allow_list, **settings)
    plan = resolve([*records, *IN_TREE], settings)
    assert plan.errors == ()
    return choose_io_processor(plan, settings, None if wish is None else ModelsWish(wish, "m/config.json"))


TABLE, OTHER = plugin("table"), plugin("other")


def test_the_users_choice_wins_over_the_models():
    decision, refusal, warning = choice(TABLE, OTHER, **{USE: "other"})

    assert (decision.name, refusal, warning) == ("other", "", "")


def test_without_any_wish_there_is_none_and_who_asks_for_one_hears_what_exists():
    assert choice(TABLE, OTHER, wish=None) == (
        None,
        "none is chosen. Name one with --io-processor, LLM(io_processor_plugin=...) or plugins.io_processor.use; "
        "installed: other, table",
        "",
    )


@pytest.mark.parametrize("enabled", [["table"], ["other", "acme:table"]])
def test_a_model_gets_what_the_user_enabled_by_name(enabled):
    decision, refusal, warning = choice(TABLE, OTHER, **{ENABLED: enabled})

    assert (decision.name, decision.status, decision.named, refusal, warning) == ("table", "selected", True, "", "")
    assert decision.reason == "m/config.json names it, and plugins.io_processor.enabled allows it"


def test_a_model_gets_what_vllm_plugins_names():
    decision, _, _ = choice(TABLE, OTHER, allow_list="table")

    assert decision.reason == "m/config.json names it, and VLLM_PLUGINS allows it"


def test_that_all_are_enabled_is_not_enough_for_a_model():
    decision, refusal, warning = choice(TABLE, OTHER)

    assert decision is None
    assert (
        refusal
        == warning
        == (
            "m/config.json names the IO processor plugin 'table', and no code of it is run, as a model alone must not "
            "choose code: 'table' of acme 1.0 is installed, but not enabled by name. To allow it, set "
            "plugins.io_processor.enabled=[table], or plugins.io_processor.use=table"
        )
    )


def test_the_line_to_write_keeps_what_is_enabled_already():
    _, refusal, _ = choice(TABLE, OTHER, **{ENABLED: ["other"]})

    assert "plugins.io_processor.enabled=[other, table]" in refusal


def test_what_vllm_plugins_names_is_not_enough_where_a_list_leaves_it_out():
    records = [TABLE, OTHER, record("table", "acme", GENERAL_PLUGINS_GROUP)]

    decision, _, warning = choice(*records, allow_list="table,other", **{ENABLED: ["other"]})

    assert decision is None
    assert "not enabled by name" in warning


def test_a_plugin_that_a_model_names_and_nobody_has_is_a_warning_with_what_exists():
    _, refusal, warning = choice(plugin("tables"), OTHER)

    assert (
        refusal
        == warning
        == (
            "m/config.json names the IO processor plugin 'table', which is not installed (did you mean 'tables'?); "
            "installed: other, tables"
        )
    )


def test_what_the_user_disabled_stays_off_without_a_warning():
    decision, refusal, warning = choice(TABLE, **{DISABLED: ["table"]})

    assert (decision, warning) == (None, "")
    assert refusal == (
        "m/config.json names the IO processor plugin 'table', which is disabled: disabled by "
        "plugins.io_processor.disabled (command line (--set))"
    )


def test_what_vllm_plugins_excludes_stays_off():
    decision, refusal, _ = choice(TABLE, OTHER, allow_list="other")

    assert decision is None
    assert "which is disabled: VLLM_PLUGINS does not name it" in refusal


def test_a_distribution_that_is_not_allowed_gives_a_model_nothing():
    decision, refusal, _ = choice(TABLE, allow_distributions=["zeta"])

    assert decision is None
    assert "which is disabled: allow_distributions does not list acme" in refusal


def test_in_safe_mode_an_engine_starts_without_the_one_that_the_user_named():
    given = config(**{USE: "table"})
    settings = Config(given.settings, given.origins, safe_mode=True)
    plan = resolve([TABLE, *IN_TREE], settings)

    assert plan.errors == ()
    assert plan.notes == (
        "plugins.io_processor.use (command line (--set)) names 'table', which is not used: VLLM_EXT_SAFE_MODE leaves "
        "out all out-of-tree plugins",
    )
    assert choose_io_processor(plan, settings, ModelsWish("table", "m/config.json")) == (
        None,
        "plugins.io_processor.use names 'table', which is not used: VLLM_EXT_SAFE_MODE leaves out all plugins",
        "",
    )


def test_a_name_of_two_distributions_has_to_be_told_apart():
    twins = [TABLE, plugin("table", "zeta")]

    decision, refusal, _ = choice(*twins)
    chosen, _, _ = choice(*twins, **{ENABLED: ["zeta:table"]})

    assert decision is None
    assert "which is installed more than once; write acme:table or zeta:table in plugins.io_processor.use" in refusal
    assert chosen.distribution == "zeta"
