"""Puts the plugin projects of the tests on a temporary path as installed distributions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_ext.testing import PluginSite, build_wheel, write_distribution

__all__ = ["PROJECTS", "PluginInstaller", "write_distribution"]

PROJECTS = Path(__file__).parent.parent / "plugins"


class PluginInstaller(PluginSite):
    """Installs plugin projects for the length of one test."""

    def __init__(self, site: Path, wheel_of: Callable[[str], Path]) -> None:
        super().__init__(site)
        self._wheel_of = wheel_of

    @property
    def site(self) -> Path:
        return self.path

    def project(self, name: str) -> Path:
        """Install ``tests/plugins/NAME``; returns its package folder, a copy that a test may change."""
        self.install(self._wheel_of(name))
        return self.path / name


@pytest.fixture(scope="session")
def _wheel_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in built:
            built[name] = build_wheel(PROJECTS / name, tmp_path_factory.mktemp(name))
        return built[name]

    return find


@pytest.fixture
def plugins(plugin_site: PluginSite, _wheel_of: Callable[[str], Path]) -> PluginInstaller:
    """Installs plugin projects on a temporary path; afterwards neither they nor their modules are left."""
    return PluginInstaller(plugin_site.path, _wheel_of)
