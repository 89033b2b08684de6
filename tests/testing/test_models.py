"""Model directories that differ in their configuration."""

from __future__ import annotations

import json

import pytest

from vllm_ext.testing import changed_model


def test_what_is_given_is_changed_and_the_rest_is_copied(random_llama, tmp_path):
    target = changed_model(tmp_path / "model", random_llama, architectures=["Acme"], logit_scale=0.5)

    before, after = (json.loads((folder / "config.json").read_text()) for folder in (random_llama, target))
    assert after == before | {"architectures": ["Acme"], "logit_scale": 0.5}
    assert {path.name for path in target.iterdir()} == {path.name for path in random_llama.iterdir()}


def test_nothing_is_overwritten(random_llama, tmp_path):
    with pytest.raises(FileExistsError):
        changed_model(tmp_path, random_llama)
