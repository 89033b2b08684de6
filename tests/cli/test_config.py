"""``vllm-ext config``: the settings that hold, and which there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

SAMPLE = Path(__file__).parent.parent.parent / "etc" / "vllm-ext.yaml"


def rows(done) -> dict[str, tuple[object, str]]:
    return {row["key"]: (row["value"], row["origin"]) for row in done.out}


class TestShow:
    def test_each_value_has_its_origin(self, vllm_ext, tmp_path, monkeypatch):
        file = tmp_path / "settings.yaml"
        file.write_text("engine:\n  seed: 3\n  block_size: 8\n")
        monkeypatch.setenv("VLLM_EXT_ENGINE__BLOCK_SIZE", "32")

        done = vllm_ext("config", "show", "-f", "json", "--config-file", file, "--set", "engine.max_num_seqs=2")

        shown = rows(done)
        assert (done.code, done.err) == (0, "")
        assert shown["engine.seed"] == (3, f"file {file} line 2")
        assert shown["engine.block_size"] == (32, "environment (VLLM_EXT_ENGINE__BLOCK_SIZE)")
        assert shown["engine.max_num_seqs"] == (2, "command line (--set engine.max_num_seqs=2)")
        assert shown["engine.executor"] == ("uniproc", "default")

    def test_secrets_are_redacted_in_value_and_origin(self, vllm_ext):
        done = vllm_ext("config", "show", "options", "-f", "json", "--set", "options.npu.token=abc123")

        assert rows(done)["options.npu.token"] == ("********", "command line (--set options.npu.token)")

    def test_a_section_or_a_key_can_be_asked_for(self, vllm_ext):
        assert list(rows(vllm_ext("config", "show", "platform", "-f", "json"))) == [
            "platform.driver",
            "platform.disabled",
        ]
        assert list(rows(vllm_ext("config", "show", "engine.seed", "-f", "json"))) == ["engine.seed"]

    def test_only_what_a_source_has_set_can_be_asked_for(self, vllm_ext):
        done = vllm_ext("config", "show", "--changed", "-f", "json", "--set", "engine.seed=3")

        assert list(rows(done)) == ["engine.seed"]

    def test_a_key_that_does_not_exist_is_an_error_with_the_closest(self, vllm_ext):
        code, _, err = vllm_ext("config", "show", "engine.sed")

        assert code == 2
        assert "no setting 'engine.sed' (did you mean 'engine.seed'?)" in err

    def test_a_mistake_in_the_settings_is_the_error(self, vllm_ext):
        code, out, err = vllm_ext("config", "show", "--set", "engine.sed=3")

        assert (code, out) == (2, "")
        assert "engine.sed: unknown key (did you mean 'seed'?)" in err


def test_the_sample_is_the_one_that_is_shipped(vllm_ext):
    code, out, err = vllm_ext("config", "sample")

    assert (code, err) == (0, "")
    assert out == SAMPLE.read_text()


def test_the_schema_is_json_schema_with_every_section(vllm_ext):
    code, schema, _ = vllm_ext("config", "schema", "-f", "json")

    assert code == 0
    assert "json-schema.org" in schema["$schema"]
    assert set(yaml.safe_load(SAMPLE.read_text())) == set(_properties(schema))


def _properties(schema) -> dict[str, object]:
    body = schema if "properties" in schema else schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return body["properties"]


@pytest.mark.parametrize("arguments", [("config",), ("config", "shwo")])
def test_config_alone_names_its_commands(vllm_ext, arguments):
    done = vllm_ext(*arguments)

    assert done.code == 2
    assert "config show" in done.out + done.err


@pytest.mark.parametrize("command", ["sample", "schema"])
@pytest.mark.parametrize("option", ["--set", "--config-file", "--platform"])
def test_what_no_setting_changes_takes_none(vllm_ext, capsys, command, option):
    with pytest.raises(SystemExit, match="2"):
        vllm_ext("config", command, option, "x")

    assert f"unrecognized arguments: {option} x" in capsys.readouterr().err
