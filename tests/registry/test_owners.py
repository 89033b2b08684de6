"""A registration is its distribution's, whether it is made while a plugin is loaded or later."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from support.plugins import PluginInstaller

from vllm_ext.registry.owners import Owner, forget_owners, loading


def record(plugins: PluginInstaller, name: str, *files: str) -> Path:
    """A distribution that lists ``files``, as pip leaves it; returns its metadata folder."""
    plugins.distribution(name, {}, dict.fromkeys(files, ""))
    (folder,) = plugins.site.glob(f"{name}-*.dist-info")
    (folder / "RECORD").write_text("".join(f"{file},sha256=x,1\n" for file in files))
    return folder


def test_a_late_one_is_of_the_distribution_that_lists_the_module(plugins):
    record(plugins, "Acme_NPU", "acme_npu/__init__.py", "acme_npu/ops.py")

    assert Owner("acme_npu.ops").identity == "acme-npu"
    assert str(Owner("acme_npu.ops")) == "Acme_NPU (module acme_npu.ops)"


@pytest.mark.parametrize("module", ["acme_npu", "acme_npu.made.at.run.time"])
def test_a_module_that_nobody_lists_is_of_who_has_its_top_level_package(plugins, module):
    record(plugins, "acme", "acme_npu/ops.py")

    assert Owner(module).identity == "acme"


def test_distributions_that_share_a_top_level_package_are_told_apart(plugins):
    record(plugins, "acme_gpu", "acme/gpu/__init__.py", "acme/gpu/ops.py")
    record(plugins, "acme_npu", "acme/npu/__init__.py", "acme/npu/ops.py")

    assert [Owner(f"acme.{device}.ops").identity for device in ("gpu", "npu")] == ["acme-gpu", "acme-npu"]


def test_what_lies_below_a_loaded_plugins_module_is_of_its_distribution(plugins):
    """Whatever the metadata has: those of an editable installation list no file."""
    with loading("npu", "acme-editable", "acme.npu"):
        pass

    assert Owner("acme.npu.ops").identity == "acme-editable"
    assert Owner("acme.gpu.ops").identity == "acme"


def test_what_lies_beside_it_in_its_package_is_too_where_no_metadata_tells(plugins):
    """As of an editable installation that has no top_level.txt."""
    files = {f"space_of_acme/npu/{name}.py": "" for name in ("__init__", "plugin", "ops")}
    plugins.distribution("acme_editable", {}, files | {"space_of_acme/gpu.py": ""})
    for name in ("npu.plugin", "npu.ops", "gpu"):
        importlib.import_module(f"space_of_acme.{name}")
    assert Owner("space_of_acme.npu.ops").identity == "space-of-acme"
    forget_owners()

    with loading("npu", "acme-editable", "space_of_acme.npu.plugin"):
        pass

    parts = ("", ".ops", ".made.at.run.time")
    assert [Owner(f"space_of_acme.npu{part}").identity for part in parts] == ["acme-editable"] * 3
    assert Owner("space_of_acme.gpu").identity == "space-of-acme", "others may share a package without a file"


def test_what_lies_beside_plugins_of_two_distributions_is_neithers(plugins):
    plugins.distribution("acme", {}, {f"both_of_acme/{name}.py": "" for name in ("__init__", "gpu", "npu", "ops")})
    for name in ("gpu", "npu", "ops"):
        importlib.import_module(f"both_of_acme.{name}")

    for name in ("gpu", "npu"):
        with loading(name, f"acme-{name}", f"both_of_acme.{name}"):
            pass

    assert Owner("both_of_acme.ops").identity == "both-of-acme"


def test_metadata_that_cannot_be_read_are_nobodys_and_harm_no_one(plugins):
    folder = record(plugins, "a_broken", "other/__init__.py", "broken/__init__.py")
    (folder / "METADATA").write_bytes(b"Metadata-Version: 2.1\nName: a_broken\nAuthor: Jos\xe9\nVersion: 1\n")
    listed = record(plugins, "b_broken", "another/__init__.py")
    (listed / "RECORD").write_bytes(b"\xff\xfe\n")
    record(plugins, "fine", "fine/__init__.py")

    assert [Owner(name).identity for name in ("fine", "broken", "another")] == ["fine", "broken", "another"]


def test_a_module_outside_of_any_distribution_is_of_its_own():
    assert Owner("some_script.part").identity == "some-script"
    assert str(Owner("__main__")) == "module __main__"
