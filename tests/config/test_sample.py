"""``etc/vllm-ext.yaml`` is the defaults, with every key and its meaning."""

from __future__ import annotations

from pathlib import Path

from vllm_ext.config import Settings, load_config, render_sample
from vllm_ext.config.keys import all_keys

SAMPLE = Path(__file__).parent.parent.parent / "etc" / "vllm-ext.yaml"


def test_the_sample_equals_the_defaults_and_has_every_key():
    config = load_config([SAMPLE], environ={})

    assert config.settings == Settings()
    assert set(config.origins) == set(all_keys())


def test_the_file_is_what_the_schema_gives():
    assert SAMPLE.read_bytes() == render_sample().encode(), "write the text of render_sample() into etc/vllm-ext.yaml"


def test_no_line_is_too_long_or_ends_with_a_blank():
    lines = render_sample().split("\n")

    assert all(len(line) < 120 and line == line.rstrip() for line in lines)
    assert lines[-2:] == ["  seed: 0", ""]


def test_the_example_of_options_works_once_its_marks_are_removed(tmp_path):
    header = render_sample().split("\n\n")[0].splitlines()
    start = header.index("#   options:")
    path = tmp_path / "settings.yaml"
    path.write_text("\n".join(line.removeprefix("#   ") for line in header[start : start + 3]))

    assert load_config([path], environ={}).settings.options == {"npu": {"batch": 4}}


def test_each_key_stands_below_its_meaning():
    lines = [line.strip() for line in SAMPLE.read_text().splitlines()]
    origins = load_config([SAMPLE], environ={}).origins

    for path, key in all_keys().items():
        assert key.description, path
        assert lines[origins[path].line - 2] == f"# {key.description}", path
