"""Plugins on a path as installed distributions, without pip: packages beside real ``dist-info`` folders."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

_LEGACY_BACKEND = "setuptools.build_meta:__legacy__"
"""Of a project that names none."""
_BUILD = """
import importlib, sys
module, _, names = sys.argv[1].partition(":")
backend = importlib.import_module(module)
for name in filter(None, names.split(".")):
    backend = getattr(backend, name)
backend.build_wheel(sys.argv[2])
"""
_NOT_SOURCE = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")
"""At the top of a project; an older build would get into the new one."""


def build_wheel(project: str | PathLike[str], output: str | PathLike[str]) -> Path:
    """Let a project's own build backend make its wheel, in a process of its own, from a copy of the project.

    Args:
        project: a folder with a ``pyproject.toml`` or a ``setup.py``; what it needs to be built has to be installed.
        output: the folder for the wheel.

    Returns: the wheel.

    Raises:
        ValueError: there is no project in the folder. RuntimeError: it cannot be built; the text has the build's own.
    """
    project, output = Path(project).resolve(), Path(output).resolve()
    if not any((project / name).is_file() for name in ("pyproject.toml", "setup.py")):
        raise ValueError(f"no project to install in {project}: it has neither pyproject.toml nor setup.py")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(project, source, ignore=lambda at, names: _NOT_SOURCE(at, names) if at == str(project) else ())
        built = Path(folder) / "built"
        built.mkdir()
        command = [sys.executable, "-W", "ignore", "-c", _BUILD, _backend(project), str(built)]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        wheels = list(built.glob("*.whl"))
        if done.returncode or not wheels:
            raise RuntimeError(f"{project} cannot be built by {command[-2]}:\n{done.stdout}{done.stderr}")
        return Path(shutil.copy(wheels[0], output))


def _backend(project: Path) -> str:
    path = project / "pyproject.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    backend: str = table.get("build-system", {}).get("build-backend", _LEGACY_BACKEND)
    return backend


def write_distribution(
    site: Path, name: str, entry_points: Mapping[str, Sequence[str]], files: Mapping[str, str], version: str = "0.1"
) -> None:
    """An installed distribution, made on the spot.

    Args:
        site: the folder that is, or will be, on the path.
        name: the distribution's.
        entry_points: lines ``name = module:attribute`` by group.
        files: texts by path below ``site``; existing ones are replaced.
        version: the distribution's.

    Raises:
        FileExistsError: the distribution is there already.
    """
    # In the folder's name a dash ends the distribution's.
    dist_info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    dist_info.mkdir(parents=True)
    (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = (f"[{group}]\n" + "".join(f"{line}\n" for line in lines) for group, lines in entry_points.items())
    (dist_info / "entry_points.txt").write_text("\n".join(groups))
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)


class PluginSite:
    """A folder that plugins are installed into; the fixture ``plugin_site`` of :mod:`vllm_ext.testing.pytest_plugin` is
    one on the path.

    Attributes:
        path: the folder. A new Python process sees what is in it with ``PYTHONPATH`` set to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, project: str | PathLike[str]) -> None:
        """Install a project, or the wheel that :func:`build_wheel` made of it, without its requirements.

        Raises:
            ValueError: there is no project in the folder. RuntimeError: it cannot be built.
        """
        with tempfile.TemporaryDirectory() as output:
            wheel = Path(project) if Path(project).suffix == ".whl" else build_wheel(project, output)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(self.path)
        importlib.invalidate_caches()

    def distribution(self, name: str, entry_points: Mapping[str, Sequence[str]], files: Mapping[str, str]) -> None:
        """Install a distribution made of ``files``; see :func:`write_distribution`."""
        write_distribution(self.path, name, entry_points, files)
        importlib.invalidate_caches()

    def forget_modules(self) -> None:
        """Drop what was imported from the folder."""
        root = f"{self.path}/"
        for name, module in sys.modules.copy().items():
            if (getattr(module, "__file__", None) or "").startswith(root):
                del sys.modules[name]
