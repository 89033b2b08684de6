"""Projects become installed distributions without pip."""

from __future__ import annotations

import importlib
import importlib.metadata

import pytest

from vllm_ext.testing import build_wheel, write_distribution

PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "acme-npu"
version = "1.2"
[project.entry-points."vllm.platform_plugins"]
npu = "acme_npu:register"
[tool.setuptools]
packages = ["acme_npu"]
"""
OWN_BACKEND = """
[build-system]
requires = []
build-backend = "json:decoder"
"""


def test_a_project_is_installed_with_its_metadata_and_left_as_it_is(plugin_site, tmp_path):
    project = tmp_path / "project"
    (project / "acme_npu").mkdir(parents=True)
    (project / "acme_npu" / "__init__.py").write_text("VALUE = 3\n")
    (project / "pyproject.toml").write_text(PYPROJECT)
    # What an older build left is not installed.
    (project / "build" / "lib" / "acme_npu").mkdir(parents=True)
    (project / "build" / "lib" / "acme_npu" / "old.py").touch()
    before = sorted(project.rglob("*"))

    plugin_site.install(project)

    assert importlib.import_module("acme_npu").VALUE == 3
    distribution = importlib.metadata.distribution("acme-npu")
    assert distribution.version == "1.2"
    assert [str(point.value) for point in distribution.entry_points] == ["acme_npu:register"]
    assert not (plugin_site.path / "acme_npu" / "old.py").exists()
    assert sorted(project.rglob("*")) == before


def test_a_folder_without_a_project_is_refused(plugin_site, tmp_path):
    with pytest.raises(ValueError, match="has neither pyproject.toml nor setup.py"):
        plugin_site.install(tmp_path)


def test_a_build_that_fails_is_told_with_what_it_said(tmp_path):
    (tmp_path / "pyproject.toml").write_text(OWN_BACKEND)

    with pytest.raises(RuntimeError, match="cannot be built by json:decoder:\n") as caught:
        build_wheel(tmp_path, tmp_path / "out")

    assert "has no attribute 'build_wheel'" in str(caught.value)


def test_what_is_written_is_a_distribution_whatever_its_name(plugin_site):
    entry_points = {
        "vllm.platform_plugins": ["npu = acme:register"],
        "vllm.general_plugins": ["a = acme:a", "b = acme:b"],
    }
    write_distribution(plugin_site.path, "acme-npu", entry_points, {"acme/__init__.py": ""}, "3.1")

    distribution = importlib.metadata.distribution("acme-npu")

    assert (distribution.name, distribution.version) == ("acme-npu", "3.1")
    assert {(point.group, point.name) for point in distribution.entry_points} == {
        ("vllm.platform_plugins", "npu"),
        ("vllm.general_plugins", "a"),
        ("vllm.general_plugins", "b"),
    }
    with pytest.raises(FileExistsError):
        write_distribution(plugin_site.path, "acme-npu", {}, {}, "3.1")
