"""Puts plugin projects on a temporary path as installed distributions: packages beside real ``dist-info`` folders."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

PROJECTS = Path(__file__).parent.parent / "plugins"


def build_dist_info(project: Path, output: Path) -> Path:
    """Let the project's own ``setup.py`` write its metadata folder below ``output``; returns that folder."""
    # setup.py leaves an egg-info folder beside itself, so it works on a copy.
    source = output / "source"
    shutil.copytree(project, source)
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "dist_info", "-o", str(output)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{project}/setup.py dist_info failed:\n{done.stderr}")
    (dist_info,) = output.glob("*.dist-info")
    return dist_info


def write_distribution(
    site: Path, name: str, entry_points: Mapping[str, Sequence[str]], files: Mapping[str, str], version: str = "0.1"
) -> None:
    """An installed distribution, made on the spot: ``files`` by path below ``site``, entry points by group."""
    dist_info = site / f"{name}-{version}.dist-info"
    dist_info.mkdir(parents=True)
    (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = (f"[{group}]\n" + "".join(f"{line}\n" for line in lines) for group, lines in entry_points.items())
    (dist_info / "entry_points.txt").write_text("\n".join(groups))
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)


class PluginInstaller:
    """Installs plugin projects for the length of one test."""

    def __init__(self, site: Path, dist_info_of: Callable[[str], Path]) -> None:
        self.site = site
        self._dist_info_of = dist_info_of

    def project(self, name: str) -> Path:
        """Install ``tests/plugins/NAME``; returns its package folder, a copy that a test may change."""
        package = self.site / name
        shutil.copytree(PROJECTS / name / name, package, ignore=shutil.ignore_patterns("__pycache__"))
        dist_info = self._dist_info_of(name)
        shutil.copytree(dist_info, self.site / dist_info.name)
        importlib.invalidate_caches()
        return package

    def distribution(self, name: str, entry_points: Mapping[str, Sequence[str]], files: Mapping[str, str]) -> None:
        """Install a distribution made of ``files``; see :func:`write_distribution`."""
        write_distribution(self.site, name, entry_points, files)
        importlib.invalidate_caches()

    def forget_modules(self) -> None:
        """Drop what was imported from the installed plugins."""
        root = f"{self.site}/"
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(root):
                del sys.modules[name]


@pytest.fixture(scope="session")
def _dist_info_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in built:
            built[name] = build_dist_info(PROJECTS / name, tmp_path_factory.mktemp(name))
        return built[name]

    return find


@pytest.fixture
def plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _dist_info_of: Callable[[str], Path]
) -> Iterator[PluginInstaller]:
    """Installs plugin projects on a temporary path; afterwards neither they nor their modules are left."""
    from vllm_ext.managers import general

    # General plugins run once in a process; each test counts as a process of its own.
    monkeypatch.setattr(general, "_IN_THIS_PROCESS", general.GeneralPlugins())
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    installer = PluginInstaller(site, _dist_info_of)
    yield installer
    installer.forget_modules()
