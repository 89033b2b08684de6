"""Settings from environment variables: the type of the key says how a value is read."""

from __future__ import annotations

import pytest

from vllm_ext.config import load_config
from vllm_ext.config.environment import variable_of
from vllm_ext.config.keys import all_keys
from vllm_ext.errors import ConfigError


def settings(**environ: str):
    return load_config(environ=environ).settings


def message(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(environ=environ)
    return str(caught.value)


def test_every_key_has_a_variable():
    assert variable_of("plugins.general.enabled") == "VLLM_EXT_PLUGINS__GENERAL__ENABLED"
    assert len({variable_of(path) for path in all_keys()}) == len(all_keys())


def test_a_value_keeps_the_variable_as_its_origin():
    config = load_config(environ={"VLLM_EXT_PLATFORM__DRIVER": "cpu"})

    assert config.settings.platform.driver == "cpu"
    assert str(config.origin("platform.driver")) == "environment (VLLM_EXT_PLATFORM__DRIVER)"


@pytest.mark.parametrize("word", ["off", "123", " a b ", "{x: 1}", "a,b"])
def test_a_string_is_taken_as_it_is(word):
    assert settings(VLLM_EXT_ENGINE__MODEL=word).engine.model == word


@pytest.mark.parametrize("word", ["", "null"])
def test_null_is_written_as_null_or_left_empty_where_it_is_allowed(word):
    assert settings(VLLM_EXT_ENGINE__MODEL=word, VLLM_EXT_ENGINE__MAX_MODEL_LEN=word).engine.max_model_len is None


def test_numbers_are_whole_numbers():
    assert settings(VLLM_EXT_ENGINE__BLOCK_SIZE=" 32 ").engine.block_size == 32
    assert message(VLLM_EXT_ENGINE__BLOCK_SIZE="lots") == (
        "environment (VLLM_EXT_ENGINE__BLOCK_SIZE): engine.block_size: "
        "expected a whole number of at least 1, given 'lots'"
    )
    assert "given ''" in message(VLLM_EXT_ENGINE__BLOCK_SIZE="")


@pytest.mark.parametrize(
    ("text", "names"), [("a", ["a"]), ("a,b", ["a", "b"]), (" a , b ,", ["a", "b"]), ("", []), ("off", ["off"])]
)
def test_lists_are_separated_by_commas_and_stripped(text, names):
    assert settings(VLLM_EXT_PLATFORM__DISABLED=text).platform.disabled == names


def test_one_name_for_the_driver_is_a_name_and_several_are_a_list():
    assert settings(VLLM_EXT_PLATFORM__DRIVER=" a ").platform.driver == "a"
    assert settings(VLLM_EXT_PLATFORM__DRIVER="a, b").platform.driver == ["a", "b"]


def test_the_word_all_is_not_a_name():
    assert settings(VLLM_EXT_PLUGINS__GENERAL__ENABLED="all").plugins.general.enabled == "all"


def test_a_name_with_a_minus_is_added_to_the_disabled_ones():
    general = settings(VLLM_EXT_PLUGINS__GENERAL__ENABLED="a, -b,c").plugins.general

    assert (general.enabled, general.disabled) == (["a", "c"], ["b"])


def test_only_names_with_a_minus_leave_the_enabled_ones_as_they_were(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("plugins: {general: {enabled: [x, y], disabled: [z]}}")

    general = load_config([path], environ={"VLLM_EXT_PLUGINS__GENERAL__ENABLED": "-y"}).settings.plugins.general

    assert (general.enabled, general.disabled) == (["x", "y"], ["z", "y"])


def test_an_unknown_variable_is_an_error_with_the_closest_one():
    text = message(VLLM_EXT_PLATFORM_DRIVER="cpu", VLLM_EXT_ENGINE__SED="1")

    assert "environment (VLLM_EXT_PLATFORM_DRIVER): no setting has this variable" in text
    assert "(did you mean 'VLLM_EXT_PLATFORM__DRIVER'?)" in text
    assert "(did you mean 'VLLM_EXT_ENGINE__SEED'?)" in text


@pytest.mark.parametrize(
    ("value", "names"), [(None, None), ("", ()), ("a", ("a",)), ("a, b", ("a", "b")), (" a ,, ", ("a",))]
)
def test_vllm_plugins_is_stripped_and_unset_is_not_empty(value, names):
    environ = {} if value is None else {"VLLM_PLUGINS": value}

    assert load_config(environ=environ).allow_list == names
