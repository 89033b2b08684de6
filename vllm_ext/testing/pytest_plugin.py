"""Fixtures for the tests of plugins; a ``conftest.py`` names this module:
``pytest_plugins = ["vllm_ext.testing.pytest_plugin"]``.

Each test has default settings, and registries without what the tests before it registered.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_ext.envs import PREFIX, VLLM_PLUGINS
from vllm_ext.testing.registries import restored_registries
from vllm_ext.testing.site import PluginSite


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting reaches a test from outside: neither variables nor the user's own settings file."""
    for name in list(os.environ):
        if name.startswith(PREFIX) or name == VLLM_PLUGINS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))


@pytest.fixture(autouse=True)
def _restored_registries() -> Iterator[None]:
    """Registrations of a test end with it, and so does the process's default platform."""
    with restored_registries():
        yield


@pytest.fixture
def plugin_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _restored_registries: None) -> Iterator[PluginSite]:
    """A folder on the path that plugins are installed into; afterwards neither they nor their modules are left."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    site = PluginSite(path)
    yield site
    site.forget_modules()
