"""The settings cost every process little: what only some commands need is imported by them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOADED = "import sys; from vllm_ext.config import load_config; load_config(environ={}); print(*sys.modules)"


@pytest.fixture(scope="module")
def modules():
    # Isolated from site-packages' own start-up files as far as an editable install allows it.
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) - set(bare.stdout.split())


@pytest.mark.parametrize("name", ["torch", "yaml", "json", "stevedore", "packaging", "numpy"])
def test_reading_the_settings_without_a_file_leaves_it_out(modules, name):
    assert "vllm_ext.config.schema" in modules
    assert name not in modules
