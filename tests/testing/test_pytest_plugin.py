"""The fixtures, as a plugin's ``conftest.py`` names them; and what importing costs."""

from __future__ import annotations

import os
import subprocess
import sys

CONFTEST = 'pytest_plugins = ["vllm_ext.testing.pytest_plugin"]\n'
TESTS = """
import os, sys
import pytest
from vllm_ext.registry.models import ModelRegistry

@pytest.mark.parametrize("time", ["first", "second"])
def test_each_starts_anew(time, plugin_site):
    assert "acme" not in sys.modules
    plugin_site.distribution("acme", {}, {"acme.py": ""})
    import acme
    assert not {"Acme"} & {*ModelRegistry.get_supported_archs()}
    ModelRegistry.register_model("Acme", "acme:Acme")
    assert "VLLM_PLUGINS" not in os.environ
    assert "VLLM_EXT_ENGINE__SEED" not in os.environ
    assert not os.path.exists(os.environ["XDG_CONFIG_HOME"])
"""


def test_each_test_has_default_settings_and_leaves_nothing(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_acme.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"VLLM_PLUGINS": "none", "VLLM_EXT_ENGINE__SEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_helpers_import_neither_torch_nor_pytest():
    code = "import sys, vllm_ext.testing; print({'torch', 'pytest'} & {*sys.modules})"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
