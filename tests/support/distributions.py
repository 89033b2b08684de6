"""Distributions in several forms on several path entries, records of them without any, and settings by keyword."""

from __future__ import annotations

import zipfile
from pathlib import Path

from support.plugins import write_distribution

from vllm_ext.config import Config, Override, load_config
from vllm_ext.contracts.groups import (
    EXECUTORS_GROUP,
    GENERAL_PLUGINS_GROUP,
    IN_TREE_PLATFORMS_GROUP,
    PLATFORM_PLUGINS_GROUP,
)
from vllm_ext.discovery import ExtensionRecord

GENERAL = GENERAL_PLUGINS_GROUP
PLATFORM = PLATFORM_PLUGINS_GROUP


def record(name: str, distribution: str = "acme", group: str = GENERAL, **fields: object) -> ExtensionRecord:
    """A record as discovery gives it."""
    values = {"value": f"{name}_module:register", "version": "1.0", "location": f"/site/{distribution}-1.0.dist-info"}
    return ExtensionRecord(group=group, name=name, distribution=distribution, **(values | fields))


IN_TREE = (
    record("cpu", "vllm-ext", IN_TREE_PLATFORMS_GROUP),
    record("uniproc", "vllm-ext", EXECUTORS_GROUP),
)


def config(allow_list: str | None = None, **settings: object) -> Config:
    """Settings by key, with ``__`` for the dots, as if from the command line."""
    overrides = [Override(key.replace("__", "."), value, "--set") for key, value in settings.items()]
    return load_config(overrides=overrides, environ={} if allow_list is None else {"VLLM_PLUGINS": allow_list})


def write_egg_info(folder: Path, name: str, entry_points: dict[str, list[str]], version: str = "0.1") -> Path:
    """The metadata folder that a source tree gets in develop mode."""
    write_distribution(folder, name, entry_points, {}, version)
    egg_info = folder / f"{name}.egg-info"
    (folder / f"{name}-{version}.dist-info").rename(egg_info)
    (egg_info / "METADATA").rename(egg_info / "PKG-INFO")
    return egg_info


def write_zip(path: Path, folder: Path) -> Path:
    """Everything below ``folder`` as a zip file, which may be a path entry."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path
