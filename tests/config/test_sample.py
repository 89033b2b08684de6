"""``etc/vllm-ext.yaml`` is the defaults, with every key and its meaning."""

from __future__ import annotations

from pathlib import Path

from vllm_ext.config import Settings, load_config
from vllm_ext.config.keys import all_keys

SAMPLE = Path(__file__).parent.parent.parent / "etc" / "vllm-ext.yaml"


def test_the_sample_equals_the_defaults_and_has_every_key():
    config = load_config([SAMPLE], environ={})

    assert config.settings == Settings()
    assert set(config.origins) == set(all_keys())


def test_each_key_stands_below_its_meaning():
    lines = [line.strip() for line in SAMPLE.read_text().splitlines()]
    origins = load_config([SAMPLE], environ={}).origins

    for path, key in all_keys().items():
        assert key.description, path
        assert lines[origins[path].line - 2] == f"# {key.description}", path
