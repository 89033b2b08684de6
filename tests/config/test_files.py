"""Which settings files are read, and what is said about mistakes in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_ext.config import Settings, load_config
from vllm_ext.config.files import find_files
from vllm_ext.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "settings.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def message(*files: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(files, environ={})
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_values_are_typed_and_keep_their_file_and_line(write):
    path = write("engine:\n  max_num_seqs: 8\n  model: /models/a\nplatform: {driver: [a, b]}\n")

    config = load_config([path], environ={})

    assert config.settings.engine.max_num_seqs == 8
    assert config.settings.platform.driver == ["a", "b"]
    assert str(config.origin("engine.max_num_seqs")) == f"file {path} line 2"
    assert str(config.origin("platform.driver")) == f"file {path} line 4"
    assert str(config.origin("engine.seed")) == "default"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "engine:\n", "engine: {}\n", "\ufeffengine: {seed: 0}\n"])
def test_a_file_without_values_changes_nothing(write, text):
    assert load_config([write(text)], environ={}).settings == Settings()


def test_all_unknown_keys_are_in_one_message_with_line_and_closest_key(write):
    path = write("engine:\n  max_num_sqs: 8\nplatfrom:\n  driver: cpu\ndriver: cpu\n")

    text = message(path)

    assert f"file {path} line 2: engine.max_num_sqs: unknown key (did you mean 'max_num_seqs'?)" in text
    assert f"file {path} line 3: platfrom: unknown key (did you mean 'platform'?); keys: allow_distributions," in text
    assert f"file {path} line 5: driver: unknown key (did you mean 'platform.driver'?)" in text
    assert text.startswith("3 mistakes in the settings:\n")


@pytest.mark.parametrize(
    ("text", "line", "path", "nested"),
    [
        ("engine: {seed: 2}\nengine.seed: 1\n", 2, '"engine.seed"', "engine: {seed: ...}"),
        ("plugins:\n  general.enabled: [a]\n", 2, 'plugins."general.enabled"', "general: {enabled: ...}"),
        ("options.acme: {batch: 1}\n", 1, '"options.acme"', "options: {acme: ...}"),
    ],
)
def test_a_key_with_dots_is_unknown_and_to_be_written_nested(write, text, line, path, nested):
    file = write(text)

    assert message(file) == (
        f"file {file} line {line}: {path}: unknown key; a key with dots is no path here, so write it nested: {nested}"
    )


def test_an_empty_key_is_not_the_whole_file(write):
    assert 'line 1: "": unknown key; keys: allow_distributions,' in message(write("'': {engine: {seed: 1}}\n"))


def test_a_key_that_stands_twice_is_an_error_with_both_lines(write):
    path = write("engine:\n  seed: 1\n  block_size: 4\n  seed: 2\n")

    assert message(path) == f"file {path} line 4: engine.seed: the key stands twice, first in line 2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engine: {max_num_seqs: many}", "engine.max_num_seqs: expected a whole number of at least 1, given 'many'"),
        ("engine: {max_num_seqs: 0}", "engine.max_num_seqs: expected a whole number of at least 1, given '0'"),
        ("engine: {max_num_seqs: true}", "engine.max_num_seqs: expected a whole number of at least 1, given 'true'"),
        ("engine: {max_num_seqs: 1.5}", "engine.max_num_seqs: expected a whole number of at least 1, given '1.5'"),
        ("engine: {max_model_len: [1]}", "expected a whole number of at least 1, or null, given a list"),
        ("engine: {seed: -1}", "expected a whole number from 0 to 9223372036854775807, given '-1'"),
        ("engine: {max_num_seqs: '8'}", "given '8', which is a string; remove the quotes"),
        ("engine: {seed: !!bool x}", "expected a whole number from 0 to 9223372036854775807, given 'x'"),
        ("probe: {timeout_s: soon}", "probe.timeout_s: expected a number above 0 and of at most 86400, given 'soon'"),
        ("probe: {timeout_s: 0}", "probe.timeout_s: expected a number above 0 and of at most 86400, given '0'"),
        ("probe: {timeout_s: true}", "probe.timeout_s: expected a number above 0 and of at most 86400, given 'true'"),
        ("probe: {timeout_s: .inf}", "probe.timeout_s: expected a number above 0 and of at most 86400, given '.inf'"),
        ("probe: {timeout_s: 1e3}", "given '1e3', which YAML reads as a string; write 1000.0"),
        ("probe: {timeout_s: 1e-9}", "given '1e-9', which YAML reads as a string; write 1.0e-09"),
        ("allow_distributions: acme", "expected a list of names, or null, given 'acme'; write [acme]"),
        ("custom_ops: '+rms_norm, -all'", "expected a list of names, given '+rms_norm, -all'; write [+rms_norm, -all]"),
        ("plugins: {general: {enabled: al}}", "expected all, or a list of names, given 'al' (did you mean 'all'?)"),
        ("host: vlm", "host: expected one of embedded, vllm, given 'vlm' (did you mean 'vllm'?)"),
        ("engine: {dtype: flaot32}", "bfloat16, float16, given 'flaot32' (did you mean 'float32'?)"),
        ("engine: {dtype: fp8}", "expected one of auto, float32, bfloat16, float16, given 'fp8'"),
        ("platform: {driver: {a: b}}", "expected auto, or a name, or a list of names, given a mapping"),
        ("platform: {driver: null}", "expected auto, or a name, or a list of names, given 'null'"),
        (
            "plugins: {general: {enabled: some}}",
            "plugins.general.enabled: expected all, or a list of names, given 'some'; write [some]",
        ),
        ("engine: 3", "engine: expected a mapping of keys to values, given '3'"),
        ("[engine]", "expected a mapping of keys to values, given a list"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_what_is_expected(write, text, expected):
    path = write(text)

    assert message(path).startswith(f"file {path} line 1: ")
    assert expected in message(path)


@pytest.mark.parametrize("word", ["off", "no", "on", "yes"])
def test_a_word_that_yaml_makes_a_boolean_is_to_be_quoted(write, word):
    path = write(f"platform:\n  driver: {word}\n")

    assert f"line 2: platform.driver: expected auto, or a name, or a list of names, given '{word}'" in message(path)
    assert f"which YAML reads as a boolean; quote it: '{word}'" in message(path)
    assert load_config([write(f"platform: {{driver: '{word}'}}")], environ={}).settings.platform.driver == word


def test_where_only_a_list_of_names_may_stand_quotes_alone_are_no_advice(write):
    text = message(write("plugins: {general: {enabled: off}}"))

    assert text.endswith("given 'off', which YAML reads as a boolean; write [] for none, or ['off'] for that name")
    for advised, expected in (("[]", []), ("['off']", ["off"])):
        file = write(f"plugins: {{general: {{enabled: {advised}}}}}")
        assert load_config([file], environ={}).settings.plugins.general.enabled == expected


def test_the_element_of_a_list_that_does_not_fit_is_named_with_its_line(write):
    path = write("plugins:\n  general:\n    enabled:\n      - a\n      - no\n      - b\n")

    assert message(path).startswith(f"file {path} line 5: plugins.general.enabled: ")
    assert "given 'no', which YAML reads as a boolean; quote it: 'no'" in message(path)


@pytest.mark.parametrize(
    ("number", "read_as"), [("1:30", "90"), ("-1:30", "-90"), ("0777", "511"), ("1:30.5", "90.5"), ("0_7", "7")]
)
def test_a_number_that_yaml_reads_to_another_base_is_refused_with_what_it_reads(write, number, read_as):
    refused = f"given '{number}', which YAML reads as {read_as}; write {read_as} for that"
    option = message(write(f"options: {{npu: {{x: [{number}]}}}}"))

    if read_as.isdecimal():
        assert refused in message(write(f"engine: {{max_num_seqs: {number}}}"))
    if not read_as.startswith("-"):
        assert refused in message(write(f"probe: {{timeout_s: {number}}}"))
    assert f"options.npu.x[0]: expected a number to the base of ten, {refused}, or quote it: '{number}'" in option


@pytest.mark.parametrize(("number", "read_as"), [("1_000", 1000), ("0x10", 16), ("0b11", 3), ("+5", 5), ("0", 0)])
def test_a_number_that_says_of_itself_how_it_is_read_is_taken(write, number, read_as):
    path = write(f"options: {{npu: {{x: {number}, y: '0777', z: 0.5}}}}\nengine: {{seed: {number}}}")
    settings = load_config([path], environ={}).settings

    assert settings.options["npu"] == {"x": read_as, "y": "0777", "z": 0.5}
    assert settings.engine.seed == read_as


def test_a_number_where_a_string_is_wanted_is_to_be_quoted(write):
    assert "given '123', which YAML reads as a number; quote it: '123'" in message(write("engine: {model: 123}"))


def test_a_whole_number_is_read_as_a_number_where_one_is_wanted(write):
    assert load_config([write("probe: {timeout_s: 30}")], environ={}).settings.probe.timeout_s == 30.0


def test_syntax_errors_name_file_and_line(write):
    path = write("engine:\n  seed: [1\nplatform: x\n")

    assert message(path).startswith(f"file {path} line 3: not valid YAML: ")


@pytest.mark.parametrize("text", [b"a: \x00", b"a: 'b", b"--- 1\n--- 2\n", b"*a", b"[" * 5000])
def test_text_that_is_not_one_yaml_document_is_refused(write, text):
    assert "not valid YAML" in message(write(text))


def test_values_in_more_levels_than_can_be_read_are_called_that(write):
    path = write("options: {cpu: " + "[" * 3000 + "]" * 3000 + "}")

    assert message(path) == f"file {path}: not valid YAML: its values are nested too deeply"


def test_a_file_of_a_megabyte_is_read_and_a_larger_one_is_refused(write):
    limit = 2**20
    path = write("#" * (limit - 22) + "\nengine: {seed: 4321}\n")
    larger = write("#" * (limit - 1) + "\xe9", "larger.yaml")

    assert path.stat().st_size == limit
    assert load_config([path], environ={}).settings.engine.seed == 4321
    assert message(larger) == f"settings file {larger} has more than {limit} bytes, and nothing of it is used"


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no device here that has no end")
def test_a_file_without_an_end_is_refused():
    assert message(Path("/dev/zero")).startswith("settings file /dev/zero has more than")


def test_an_empty_name_is_not_the_current_directory():
    with pytest.raises(ConfigError, match="settings file: expected the path of a YAML file, given an empty one"):
        load_config([""], environ={})


def test_files_that_can_be_looked_at_only_once_are_read(write):
    write("engine: {seed: 4321}", "a.yaml")
    folder = write("probe: {timeout_s: 7}", "b.yaml").parent

    settings = load_config(folder.glob("*.yaml"), environ={}).settings

    assert (settings.engine.seed, settings.probe.timeout_s) == (4321, 7)


def test_text_that_is_not_utf8_is_refused(write):
    path = write(b"engine: {model: \xff}")

    assert message(path) == f"settings file {path} is not UTF-8 (byte 16)"


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.getcwd", "!!python/name:os.sep", "!local", "!!binary"])
def test_a_tag_that_would_build_an_object_is_refused(write, tag):
    path = write(f"custom_ops:\n- {tag} []\n")

    assert message(path).startswith(f"file {path} line 2: custom_ops: the tag ")
    assert message(path).endswith(" is refused; settings are plain values")


def test_anchors_stand_for_their_values(write):
    path = write("platform: {disabled: &names [a, b]}\nplugins: {general: {disabled: *names}}\n")

    assert load_config([path], environ={}).settings.plugins.general.disabled == ["a", "b"]


def test_a_list_that_holds_itself_is_a_mistake_like_any_other(write):
    assert "custom_ops: expected a list of names, given a list" in message(write("custom_ops: &a [*a]"))


def test_a_named_file_that_is_missing_is_an_error_beside_those_of_other_files(write, tmp_path):
    text = message(write("seeds: 1"), tmp_path / "none.yaml", tmp_path)

    assert f"settings file {tmp_path}/none.yaml cannot be read: No such file or directory" in text
    assert f"settings file {tmp_path} cannot be read: Is a directory" in text
    assert "seeds: unknown key" in text


class TestWhichFiles:
    """Given ones, else VLLM_EXT_CONFIG, else the usual folder; never the current directory."""

    @pytest.fixture
    def usual(self, write, tmp_path):
        return {"XDG_CONFIG_HOME": str(tmp_path)}, write("", "vllm-ext/vllm-ext.yaml")

    def test_the_users_file_is_read(self, usual):
        environ, path = usual

        assert find_files([], environ) == [path]

    def test_without_xdg_config_home_it_is_below_the_home_folder(self, write, tmp_path):
        path = write("", ".config/vllm-ext/vllm-ext.yaml")

        assert find_files([], {"HOME": str(tmp_path)}) == [path]

    def test_fragments_follow_in_the_order_of_their_names(self, usual, write):
        environ, path = usual
        fragments = [write("", f"vllm-ext/vllm-ext.d/{name}.yaml") for name in ("20", "10", "9")]
        write("", "vllm-ext/vllm-ext.d/30.txt")

        assert find_files([], environ) == [path, fragments[1], fragments[0], fragments[2]]

    def test_fragments_are_read_without_a_main_file(self, write, tmp_path):
        fragment = write("", "vllm-ext/vllm-ext.d/10.yaml")

        assert find_files([], {"XDG_CONFIG_HOME": str(tmp_path)}) == [fragment]

    def test_the_variable_replaces_the_usual_file(self, usual):
        environ, _ = usual
        environ["VLLM_EXT_CONFIG"] = os.pathsep.join(["/a.yaml", "", "/b.yaml"])

        assert find_files([], environ) == [Path("/a.yaml"), Path("/b.yaml")]

    def test_given_files_replace_the_variable(self, usual):
        environ, _ = usual

        assert find_files(["/c.yaml"], {**environ, "VLLM_EXT_CONFIG": "/a.yaml"}) == [Path("/c.yaml")]

    def test_the_current_directory_is_never_looked_at(self, write, tmp_path, monkeypatch):
        write("", "vllm-ext.yaml")
        write("", "vllm-ext/vllm-ext.yaml")
        write("", ".config/vllm-ext/vllm-ext.yaml")
        monkeypatch.chdir(tmp_path)

        assert find_files([], {"XDG_CONFIG_HOME": "."}) == []
        assert find_files([], {}) == []


class TestTheUsualFolder:
    """What is there and cannot be read is an error, and not as if it were not there."""

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "vllm-ext"
        folder.mkdir()
        return folder

    def load(self, folder):
        return load_config(environ={"XDG_CONFIG_HOME": str(folder.parent)})

    def test_a_link_that_leads_nowhere(self, folder):
        (folder / "vllm-ext.yaml").symlink_to(folder / "gone.yaml")

        with pytest.raises(ConfigError, match=r"vllm-ext/vllm-ext.yaml cannot be read: No such file"):
            self.load(folder)

    def test_a_folder_in_the_files_place(self, folder):
        (folder / "vllm-ext.yaml").mkdir()

        with pytest.raises(ConfigError, match=r"vllm-ext/vllm-ext.yaml cannot be read: Is a directory"):
            self.load(folder)

    def test_a_file_in_the_place_of_the_folder_of_more_files_is_no_folder(self, folder):
        (folder / "vllm-ext.d").write_text("")
        (folder / "vllm-ext.yaml").write_text("engine: {seed: 3}")

        assert self.load(folder).settings.engine.seed == 3


def test_a_section_with_a_tag_is_refused_and_one_to_be_merged_as_well(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("engine: !foo {seed: 1}\nplatform:\n  <<: {driver: cpu}\n")

    with pytest.raises(ConfigError) as caught:
        load_config([file], environ={})

    assert [problem.partition(": ")[2] for problem in caught.value.problems] == [
        "engine: the tag '!foo' is refused; settings are plain values",
        "platform.<<: a section cannot be merged into another; write its keys out",
    ]
