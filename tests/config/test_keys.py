"""What the type of a key says: which values it takes, and what is said about others."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from vllm_ext.config import Settings
from vllm_ext.config.environment import _typed
from vllm_ext.config.keys import Key, all_keys, unknown_key
from vllm_ext.config.schema import PositiveInt, Seconds
from vllm_ext.config.vllm_names import INSTEAD


def key(hint: Any, default: Any = None) -> Key:
    return Key("a.b", hint, default, "a key")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (bool, "true or false"),
        (str, "a string"),
        (int, "a whole number"),
        (PositiveInt, "a whole number of at least 1"),
        (Annotated[int, Meta(ge=0, le=9)], "a whole number from 0 to 9"),
        (float, "a number"),
        (Seconds, "a number above 0 and of at most 86400"),
        (Annotated[Seconds, Meta(description="x")], "a number above 0 and of at most 86400"),
        (Annotated[float, Meta(gt=0, lt=1)], "a number above 0 and below 1"),
        (Annotated[float, Meta(le=1)], "a number of at most 1"),
        (Seconds | None, "a number above 0 and of at most 86400, or null"),
        (list[str] | None, "a list of names, or null"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["all"] | list[str], "all, or a list of names"),
        (str | list[str], "a name, or a list of names"),
        (dict[str, dict[str, Any]], "a mapping of plugin names to mappings"),
    ],
)
def test_every_type_is_described_in_words(hint, words):
    assert key(hint).expected == words


def test_all_keys_of_the_schema_are_described():
    assert all(item.expected and item.description for item in all_keys().values())


def test_a_whole_number_is_a_number_where_one_is_wanted():
    value = key(Seconds).convert(30)

    assert (value, type(value)) == (30.0, float)


@pytest.mark.parametrize("value", [True, "1.5", None, 0, -1.5, float("inf"), float("nan"), 10**400])
def test_what_is_no_number_within_the_limits_is_refused(value):
    with pytest.raises(ValueError):
        key(Seconds).convert(value)


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_only_true_and_false_are_booleans(value):
    assert key(bool).convert(True) is True
    with pytest.raises(ValueError):
        key(bool).convert(value)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("ON", True), ("no", False), ("0", False)])
def test_a_variable_says_yes_or_no_in_the_usual_words(text, value):
    assert _typed(key(bool), text) is value


def test_a_near_miss_of_a_choice_gets_a_hint():
    dtype = all_keys()["engine.dtype"]

    assert dtype.mismatch("flaot32") == (
        "expected one of auto, float32, bfloat16, float16, given 'flaot32' (did you mean 'float32'?)"
    )
    assert dtype.mismatch("FLOAT32").endswith("(did you mean 'float32'?)")
    assert dtype.mismatch("x").endswith("given 'x'")


def test_the_value_of_a_secret_key_is_not_repeated():
    secret = key(Annotated[PositiveInt | None, Meta(extra={"secret": True}, description="a secret")])

    assert secret.secret
    assert secret.mismatch("hunter2") == "expected a whole number of at least 1, or null, given ********"
    assert not key(PositiveInt).secret


def test_a_long_value_is_cut():
    assert len(key(int).mismatch("x" * 1000)) < 120


def test_a_name_below_a_value_is_told_that_it_cannot_be_there():
    assert unknown_key("engine.model", "x") == (
        "unknown key; engine.model has no keys below it: it is a string, or null"
    )


def test_what_stands_in_for_a_name_of_vllm_exists():
    named = {path for text in INSTEAD.values() for path in re.findall(r"'(.+?)'", text)}

    assert "engine.kv_cache_memory" in named
    assert named <= {*all_keys()}
    assert not {f"engine.{name}" for name in INSTEAD} & {*all_keys()}


def test_two_settings_share_no_mutable_value():
    one, other = Settings(), Settings()
    one.options["npu"] = {}
    one.platform.disabled.append("a")
    one.plugins.general.disabled.append("a")

    assert other == Settings()
    assert (other.options, other.platform.disabled, other.plugins.general.disabled) == ({}, [], [])
