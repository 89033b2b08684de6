"""Settings from environment variables: the type of the key says how a value is read."""

from __future__ import annotations

import pytest

from vllm_ext.config import Settings, load_config
from vllm_ext.config.environment import variable_of
from vllm_ext.config.keys import all_keys, children
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


@pytest.mark.parametrize(("text", "number"), [("1.5", 1.5), (" 30 ", 30.0), ("1e3", 1000.0)])
def test_numbers_may_have_a_fraction_where_the_key_takes_one(text, number):
    assert settings(VLLM_EXT_PROBE__TIMEOUT_S=text).probe.timeout_s == number


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "true"])
def test_what_is_no_number_above_the_limit_is_told(text):
    assert message(VLLM_EXT_PROBE__TIMEOUT_S=text) == (
        f"environment (VLLM_EXT_PROBE__TIMEOUT_S): probe.timeout_s: expected a number above 0 and of at most "
        f"86400, given {text!r}"
    )


def test_a_near_miss_of_a_choice_gets_a_hint():
    assert message(VLLM_EXT_ENGINE__DTYPE="flaot32") == (
        "environment (VLLM_EXT_ENGINE__DTYPE): engine.dtype: expected one of auto, float32, bfloat16, float16, "
        "given 'flaot32' (did you mean 'float32'?)"
    )


@pytest.mark.parametrize(("text", "names"), [("", []), (" ", []), ("null", None), ("a, b==1.2", ["a", "b==1.2"])])
def test_an_empty_list_allows_nothing_and_null_everything(text, names):
    assert settings(VLLM_EXT_ALLOW_DISTRIBUTIONS=text).allow_distributions == names


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


@pytest.mark.parametrize("kind", children("plugins"))
def test_a_name_with_a_minus_works_for_every_kind_of_plugin(kind):
    variable = variable_of(f"plugins.{kind}.enabled")
    config = load_config(environ={variable: "a,-b", variable_of(f"plugins.{kind}.disabled"): "c"})

    plugins = getattr(config.settings.plugins, kind)

    assert (plugins.enabled, plugins.disabled) == (["a"], ["c", "b"])
    assert str(config.origin(f"plugins.{kind}.disabled")) == (
        f"environment ({variable}) added to environment ({variable_of(f'plugins.{kind}.disabled')})"
    )


@pytest.mark.parametrize("kind", children("plugins"))
def test_only_a_name_with_a_minus_keeps_the_default_of_every_kind(kind):
    plugins = load_config(environ={variable_of(f"plugins.{kind}.enabled"): "-b"}).settings.plugins

    assert getattr(plugins, kind).enabled == getattr(Settings().plugins, kind).enabled
    assert getattr(plugins, kind).disabled == ["b"]


def test_all_but_one_are_written_with_a_minus():
    general = settings(VLLM_EXT_PLUGINS__GENERAL__ENABLED="all,-b").plugins.general

    assert (general.enabled, general.disabled) == ("all", ["b"])


def test_a_lone_minus_is_a_name_and_not_an_empty_list():
    assert settings(VLLM_EXT_PLUGINS__GENERAL__ENABLED="-").plugins.general.enabled == ["-"]


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
    assert "(did you mean 'VLLM_PLUGINS'?)" in message(VLLM_EXT_PLUGINS="a")


@pytest.mark.parametrize(
    ("value", "names"), [(None, None), ("", ()), ("a", ("a",)), ("a, b", ("a", "b")), (" a ,, ", ("a",))]
)
def test_vllm_plugins_is_stripped_and_unset_is_not_empty(value, names):
    environ = {} if value is None else {"VLLM_PLUGINS": value}

    assert load_config(environ=environ).allow_list == names


class TestSafeMode:
    @pytest.mark.parametrize("word", ["1", "true", "yes", "on", "On", " TRUE "])
    def test_words_for_yes_turn_it_on(self, word):
        assert load_config(environ={"VLLM_EXT_SAFE_MODE": word}).safe_mode is True

    @pytest.mark.parametrize("word", ["0", "false", "no", "off", "OFF", "", None])
    def test_words_for_no_an_empty_variable_and_none_leave_it_off(self, word):
        environ = {} if word is None else {"VLLM_EXT_SAFE_MODE": word}

        assert load_config(environ=environ).safe_mode is False

    def test_another_word_is_an_error(self):
        assert message(VLLM_EXT_SAFE_MODE="2") == (
            "environment (VLLM_EXT_SAFE_MODE): expected 1, true, yes, on, or 0, false, no, off, given '2'"
        )
        assert message(VLLM_EXT_SAFE_MODE="ture").endswith("given 'ture' (did you mean 'true'?)")

    def test_a_misspelt_variable_is_told_the_right_one(self):
        assert "(did you mean 'VLLM_EXT_SAFE_MODE'?)" in message(VLLM_EXT_SAVE_MODE="1")
