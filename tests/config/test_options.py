"""``options``: what plugins are handed, merged key by key over all sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_ext.config import Override, Settings, load_config, parse_set
from vllm_ext.config.redaction import scrub, secrets_in
from vllm_ext.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "settings.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def options(*files: Path, sets: tuple[str, ...] = (), **environ: str):
    return load_config(files, [parse_set(text) for text in sets], environ).settings.options


def message(*files: Path, sets: tuple[str, ...] = (), **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(files, [parse_set(text) for text in sets], environ)
    return str(caught.value)


def nested(levels: int) -> str:
    return '{"a": ' * levels + "1" + "}" * levels


class TestMerging:
    """Mappings merge at any depth, everything else replaces."""

    def test_files_environment_and_command_line_give_one_mapping(self, write):
        config = load_config(
            [
                write("options:\n  npu:\n    batch: 1\n    seed: 1\n    x: {y: 1}\n", "1.yaml"),
                write("options:\n  npu:\n    seed: 2\n    x: {z: 2}\n", "2.yaml"),
            ],
            [parse_set("options.npu.x.v=4"), parse_set("options.npu.log=true")],
            {"VLLM_EXT_OPTIONS": '{"npu": {"x": {"w": 3}, "log": false}, "other": {}}'},
        )

        assert config.settings.options == {
            "npu": {"batch": 1, "seed": 2, "x": {"y": 1, "z": 2, "w": 3, "v": 4}, "log": True},
            "other": {},
        }

    def test_every_leaf_keeps_its_own_origin(self, write):
        path = write("options:\n  npu:\n    batch: 1\n    x:\n      y: 1\n      z: 1\n")

        config = load_config([path], [parse_set("options.npu.batch=2")], {"VLLM_EXT_OPTIONS": '{"npu":{"x":{"y":2}}}'})

        assert {key: str(origin) for key, origin in config.origins.items()} == {
            "options.npu.batch": "command line (--set options.npu.batch=2)",
            "options.npu.x.y": "environment (VLLM_EXT_OPTIONS)",
            "options.npu.x.z": f"file {path} line 6",
        }

    def test_lists_replace(self, write):
        files = [write(f"options: {{npu: {{devices: [{text}]}}}}", f"{text}.yaml") for text in ("1", "2")]

        assert options(*files) == {"npu": {"devices": [2]}}

    def test_a_mapping_replaces_a_plain_value_and_the_other_way_round(self, write):
        plain, mapping = write("options: {npu: {x: 1}}", "1.yaml"), write("options: {npu: {x: {y: {z: 2}}}}", "2.yaml")

        assert options(plain, mapping) == {"npu": {"x": {"y": {"z": 2}}}}
        assert options(mapping, plain) == {"npu": {"x": 1}}
        assert set(load_config([mapping, plain], environ={}).origins) == {"options.npu.x"}

    @pytest.mark.parametrize("empty", ["options: {}", "options:", "options: {npu: {}}", "options: {npu: }"])
    def test_an_empty_mapping_takes_nothing_away(self, write, empty):
        full, empty_file = write("options: {npu: {x: 1}}", "1.yaml"), write(empty, "2.yaml")

        assert options(full, empty_file) == options(empty_file, full) == {"npu": {"x": 1}}

    def test_null_is_a_value_like_others(self, write):
        files = [write("options: {npu: {x: 1}}", "1.yaml"), write("options: {npu: {x: null}}", "2.yaml")]

        assert options(*files) == {"npu": {"x": None}}

    def test_a_plugin_without_options_is_known(self, write):
        assert options(write("options:\n  npu:\n  acme: {}\n")) == {"npu": {}, "acme": {}}


class TestNames:
    """Names of plugins, and of their options, are free text."""

    def test_dots_and_colons_do_not_split_a_name(self, write):
        path = write("options: {'acme:npu': {x: 1}, acme.npu: {x.y: 2}, acme: {npu: {x: 3}}}")

        config = load_config([path], environ={})

        assert config.settings.options == {
            "acme:npu": {"x": 1},
            "acme.npu": {"x.y": 2},
            "acme": {"npu": {"x": 3}},
        }
        assert set(config.origins) == {"options.acme:npu.x", 'options."acme.npu"."x.y"', "options.acme.npu.x"}

    @pytest.mark.parametrize(
        "text",
        [
            "options.npu.batch=4",
            "options.npu={batch: 4}",
            "options={npu: {batch: 4}}",
            '"options".npu.batch=4',
        ],
    )
    def test_the_command_line_takes_any_part_of_the_path(self, text):
        assert options(sets=(text,)) == {"npu": {"batch": 4}}

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("options.npu.a.b.c=[1, {d: 2}]", {"npu": {"a": {"b": {"c": [1, {"d": 2}]}}}}),
            ("options.acme:npu.x=null", {"acme:npu": {"x": None}}),
            ('options."acme.npu".x=1.5', {"acme.npu": {"x": 1.5}}),
            ("options={acme.npu: {x: 1}}", {"acme.npu": {"x": 1}}),
            ("options.npu.url='a=b'", {"npu": {"url": "a=b"}}),
        ],
    )
    def test_deeper_keys_and_free_names_work_on_the_command_line(self, text, expected):
        assert options(sets=(text,)) == expected


class TestValues:
    def test_any_plain_value_is_allowed(self, write):
        value = {"a": None, "b": True, "c": 1, "d": 1.5, "e": "x", "f": [1, [2, {"g": []}]], "h": {}}
        text = json.dumps({"npu": value})

        assert options(write(f"options: {text}")) == {"npu": value}
        assert options(VLLM_EXT_OPTIONS=text) == {"npu": value}
        assert options(sets=(f"options={text}",)) == {"npu": value}
        assert load_config((), [Override("options", {"npu": value}, "options")], {}).settings.options["npu"] == value

    def test_values_are_copies(self, write):
        devices = [1, {"x": []}]

        config = load_config((), [Override("options.npu.devices", devices, "options")], {})

        assert config.settings.options == {"npu": {"devices": devices}}
        assert config.settings.options["npu"]["devices"] is not devices
        assert config.settings.options["npu"]["devices"][1]["x"] is not devices[1]["x"]

    def test_an_alias_in_a_file_is_a_copy(self, write):
        both = options(write("options: {a: {x: &x [1]}, b: {x: *x}}"))

        both["a"]["x"].append(2)

        assert both["b"] == {"x": [1]}

    def test_merge_keys_bring_in_what_is_not_written(self, write):
        path = write("options:\n  a: &a {x: 1, y: 1}\n  b:\n    <<: *a\n    y: 2\n  c: *a\n  d: [{<<: *a}]\n")

        assert "options.d: expected a mapping, given a list" in message(path)
        path.write_text(path.read_text().replace("d: [{<<: *a}]", "d: {e: [{<<: *a}]}"))
        assert options(path) == {
            "a": {"x": 1, "y": 1},
            "b": {"x": 1, "y": 2},
            "c": {"x": 1, "y": 1},
            "d": {"e": [{"x": 1, "y": 1}]},
        }

    def test_a_merge_key_without_a_mapping_is_a_mistake(self, write):
        path = write("options:\n  npu:\n    <<: 3\n")

        assert message(path) == f"file {path} line 3: options.npu: '<<' merges mappings, given '3'"


class TestMistakesInFiles:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("options: [npu]", "options: expected a mapping of plugin names to mappings, given a list"),
            ("options: {npu: 3}", "options.npu: expected a mapping, given '3'"),
            ("options: {npu: [x]}", "options.npu: expected a mapping, given a list"),
            ("options: {npu: {x: !!int y}}", "options.npu.x: expected null, true, false, a number, a string, a list"),
            ("options: {npu: !!str {x: 1}}", "options.npu: expected a mapping, given a mapping"),
            ("options: {npu: {x: 2024-01-01}}", "options.npu.x: expected a plain value, given '2024-01-01'"),
            ("options: {npu: {x: 2024-01-01}}", "which YAML reads as a date; quote it: '2024-01-01'"),
            ("options: {npu: {x: =}}", "given '=', which YAML reads as a sign of its own; quote it: '='"),
            ("options: {npu: {x: <<}}", "given '<<', which YAML reads as a sign to merge; quote it: '<<'"),
            (
                "options: {npu: {api_key: 0777}}",
                "api_key: a number that YAML reads otherwise than it is written; quote",
            ),
            (
                "options: {npu: {1: x}}",
                "options.npu: expected a string as key, given '1', which YAML reads as a number",
            ),
            ("options: {npu: {x: [{off: x}]}}", "options.npu.x[0]: expected a string as key, given 'off', which"),
            ("options: {npu: {off: x}}", "which YAML reads as a boolean; quote it: 'off'"),
            ("options: {npu: {? [a] : x}}", "options.npu: expected a string as key, given a list"),
            ("options: {1: {}}", "options: expected a string as key, given '1', which YAML reads as a number"),
        ],
    )
    def test_what_is_not_plain_is_told_with_its_place(self, write, text, expected):
        path = write(f"# first line\n{text}\n")

        assert message(path).startswith(f"file {path} line 2: ")
        assert expected in message(path)

    @pytest.mark.parametrize("tag", ["!!python/object/apply:os.getcwd", "!local", "!!binary", "!!set"])
    def test_a_tag_that_would_build_an_object_is_refused(self, write, tag):
        path = write(f"options:\n  npu:\n    x:\n    - {tag} {{}}\n")

        assert message(path).startswith(f"file {path} line 4: options.npu.x[0]: the tag ")
        assert message(path).endswith(" is refused; settings are plain values")

    def test_a_key_with_a_tag_is_refused(self, write):
        assert "options.npu: the tag '!x' is refused" in message(write("options: {npu: {!x a: 1}}"))

    def test_keys_that_stand_twice_are_found_at_any_depth_with_both_lines(self, write):
        path = write("options:\n  a:\n    x: 1\n    y:\n    - z: 1\n      z: 2\n    x: 2\n  b: {}\n  a: {}\n")

        text = message(path)

        assert text.startswith("3 mistakes")
        assert f"file {path} line 7: options.a.x: the key stands twice, first in line 3" in text
        assert f"file {path} line 6: options.a.y[0].z: the key stands twice, first in line 5" in text
        assert f"file {path} line 9: options.a: the key stands twice, first in line 2" in text

    def test_options_that_hold_themselves_are_refused(self, write):
        assert "options: holds itself, or more than 100000 values" in message(write("options: {a: &a {x: *a}}"))

    def test_aliases_that_multiply_are_refused(self, write):
        lines = [f"  a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 60)]

        assert "holds itself, or more than" in message(write("options:\n  a0: &a0 {x: 1}\n" + "".join(lines)))

    @pytest.mark.parametrize(
        ("levels", "text"), [(110, "options.a: values are nested in more than 100 levels"), (5000, "not valid YAML: ")]
    )
    def test_nesting_without_end_is_refused(self, write, levels, text):
        assert text in message(write(f"options: {nested(levels)}"))


class TestMistakesInTheVariable:
    @pytest.mark.parametrize(
        ("text", "given"),
        [
            ("{npu: 1}", "'{npu: 1}' (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
            ('{"npu": {}', "'{\"npu\": {}' (Expecting ',' delimiter: line 1 column 11 (char 10))"),
            ("npu", "'npu' (Expecting value: line 1 column 1 (char 0))"),
            ('{"npu": {"x": 1, "x": 2}}', '\'{"npu": {"x": 1, "x": 2}}\' (the key \'x\' stands twice)'),
        ],
    )
    def test_text_that_is_no_json_is_told_with_the_key_and_the_place(self, text, given):
        assert message(VLLM_EXT_OPTIONS=text) == (
            "environment (VLLM_EXT_OPTIONS): options: expected a mapping of plugin names to mappings, as JSON, "
            f"given {given}"
        )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[1]", "options: expected a mapping of plugin names to mappings, given [1]"),
            ("null", "options: expected a mapping of plugin names to mappings, given None"),
            ('{"npu": 1}', "options.npu: expected a mapping, given 1"),
            (nested(110), "options.a: values are nested in more than 100 levels"),
        ],
    )
    def test_json_of_another_form_is_told(self, text, expected):
        assert message(VLLM_EXT_OPTIONS=text) == f"environment (VLLM_EXT_OPTIONS): {expected}"

    def test_json_nested_without_end_is_refused(self):
        assert message(VLLM_EXT_OPTIONS=nested(50_000)).endswith("(it is nested too deeply)")

    @pytest.mark.parametrize("text", ["", " ", "{}"])
    def test_an_empty_variable_adds_nothing(self, write, text):
        assert options(write("options: {npu: {x: 1}}"), VLLM_EXT_OPTIONS=text) == {"npu": {"x": 1}}

    def test_a_variable_for_one_option_is_told_where_it_goes(self):
        assert message(VLLM_EXT_OPTIONS__NPU__BATCH="4") == (
            "environment (VLLM_EXT_OPTIONS__NPU__BATCH): no setting has this variable "
            "(did you mean 'VLLM_EXT_OPTIONS', with a JSON object as its value?)"
        )


class TestMistakesOnTheCommandLine:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("options=3", "options: expected a mapping of plugin names to mappings, given 3"),
            ("options.npu=3", "options.npu: expected a mapping, given 3"),
            ("options={npu: [1]}", "options.npu: expected a mapping, given [1]"),
            ("options.npu={1: 2}", "options.npu: expected a string as key, given 1; quote it"),
            ("options.npu.x=[{1: 2}]", "options.npu.x: expected a string as key, given 1; quote it"),
            ("options.npu.x=2024-01-01", "options.npu.x: expected null, true, false, a number, a string, a list or"),
        ],
    )
    def test_a_value_that_is_not_plain_is_told(self, text, expected):
        assert message(sets=(text,)).startswith(f"command line (--set {text}): {expected}")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("options={a: {x: 1, x: 2}}", "the key 'x' stands twice"),
            ("options={a: &a {x: *a}}", "holds itself, or more than 100000 values"),
            ("options.npu.x=!!python/name:os.sep ''", "is refused; settings are plain values"),
        ],
    )
    def test_a_value_that_is_no_yaml_is_refused_at_once(self, text, expected):
        with pytest.raises(ConfigError, match=f"is not a YAML value: .*{expected}"):
            parse_set(text)

    def test_an_object_from_python_is_no_plain_value(self):
        with pytest.raises(ConfigError, match=r"options.npu.x: expected null, .*, given a PosixPath"):
            load_config((), [Override("options.npu.x", Path("/"), "options")], {})


@pytest.mark.parametrize("text", ["{a: {x: .nan}}", "{a: {x: [.inf]}}"])
def test_numbers_that_json_does_not_have_are_refused(text):
    with pytest.raises(ConfigError, match="which JSON does not have"):
        load_config(overrides=[parse_set(f"options={text}")], environ={})


TOO_LARGE = "expected an integer from -2**63 to 2**64 - 1, given a larger one; quote it"
NO_TEXT = "expected text that UTF-8 can express, given '\\ud800'"


class TestWhatCannotBeHandedToAnotherProcess:
    """Refused with its place; the processes of an engine would fail on it without one."""

    def test_the_largest_and_the_smallest_integer_can(self):
        value = {"npu": {"x": 2**64 - 1, "y": -(2**63)}}

        assert load_config(overrides=[Override("options", value, "options")], environ={}).settings.options == value

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{npu: {x: [18446744073709551616]}}", f"options.npu.x[0]: {TOO_LARGE}"),
            ("{npu: {x: -9223372036854775809}}", f"options.npu.x: {TOO_LARGE.replace('larger', 'smaller')}"),
            ('{npu: {x: "\\ud800y"}}', f"options.npu.x: {NO_TEXT}"),
            ('{npu: {x: [{"\\ud800": 1}]}}', f"options.npu.x[0]: {NO_TEXT} in a key"),
            ('{"\\ud800": {x: 1}}', f"options: {NO_TEXT} in a key"),
        ],
    )
    def test_in_a_file(self, write, text, expected):
        path = write(f"# first line\noptions: {text}")

        assert message(path) == f"file {path} line 2: {expected}"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"npu": {"x": [18446744073709551616]}}', f"options.npu.x: {TOO_LARGE}"),
            ('{"npu": {"x": "\\ud800"}}', f"options.npu.x: {NO_TEXT}"),
            ('{"npu": {"x": [{"\\ud800": 1}]}}', f"options.npu.x: {NO_TEXT} in a key"),
            ('{"npu": {"\\ud800": 1}}', f"options.npu: {NO_TEXT} in a key"),
        ],
    )
    def test_in_the_environment(self, text, expected):
        assert message(VLLM_EXT_OPTIONS=text) == f"environment (VLLM_EXT_OPTIONS): {expected}"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("options.npu.x=18446744073709551616", f"options.npu.x: {TOO_LARGE}"),
            ("options.npu.\ud800=1", f"options.npu: {NO_TEXT} in a key"),
        ],
    )
    def test_on_the_command_line(self, text, expected):
        assert message(sets=(text,)) == f"command line (--set {text}): {expected}"

    def test_an_integer_with_more_digits_than_python_prints(self):
        with pytest.raises(ConfigError, match="given a larger one"):
            load_config((), [Override("options.npu.x", 10**5000, "options")], {})


def test_secrets_are_found_and_taken_out_of_texts():
    options = {"npu": {"token": "abcdef", "size": 4, "credentials": {"pin": 1234, "ab": "abc", "list": ["abcdefgh"]}}}

    secrets = secrets_in(Settings(options=options))

    assert secrets == ["abcdefgh", "abcdef", "1234"]
    assert scrub("bad abcdefgh and abcdef, 1234", secrets) == "bad ******** and ********, ********"


def test_the_login_of_a_url_is_a_secret_in_texts_and_its_password_as_well():
    secrets = secrets_in(Settings(options={"npu": {"urls": ["https://user:p%40ss@host/a", "https://host/b@c"]}}))

    assert secrets == ["user:p%40ss", "p%40ss", "p@ss"]
    assert scrub("https://user:p%40ss@host refuses p@ss", secrets) == "https://********@host refuses ********"


@pytest.mark.parametrize("show", [str, repr, json.dumps, lambda text: repr({"key": text}), lambda text: ascii([text])])
@pytest.mark.parametrize(
    "secret", ["first\nsecond\n", "quote'first", "both'and\"second", "back\\first", "t\tsecond", "für"]
)
def test_a_secret_is_taken_out_of_texts_in_the_form_that_it_has_in_quotes(secret, show):
    secrets = secrets_in(Settings(options={"npu": {"private_key": secret * 2}}))

    text = scrub(f"bad key {show(secret * 2)}!", secrets)

    assert "********" in text
    assert not any(part in text for part in ("first", "second", "für", "\\xfc"))


def test_of_a_secret_of_several_lines_each_is_taken_out_by_itself():
    secrets = secrets_in(Settings(options={"npu": {"key_password": "-- begin --\n  abcdef\r\nxyz\n-- end --\n"}}))

    assert scrub("  | -- begin --\n  |   abcdef\n  | xyz", secrets) == "  | ********\n  |   ********\n  | xyz"
