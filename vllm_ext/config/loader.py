"""All sources merged, with the origin of every value.

One rule, per key: command line > environment > file (a later file wins) > default. Mappings merge, lists replace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from vllm_ext.config.environment import read_allow_list, read_environment, read_safe_mode
from vllm_ext.config.files import find_files
from vllm_ext.config.keys import all_keys
from vllm_ext.config.merge import Tree, find, leaves, put, values
from vllm_ext.config.origin import DEFAULT, Origin
from vllm_ext.config.overrides import Override, read_override
from vllm_ext.config.schema import Settings
from vllm_ext.errors import ConfigError


class Config(msgspec.Struct, frozen=True):
    """The effective settings, and where each value comes from."""

    settings: Settings
    origins: Mapping[str, Origin]
    """By key path, for every key that a source has set; below ``options`` for every leaf."""
    allow_list: tuple[str, ...] | None = None
    """Names in ``VLLM_PLUGINS``; ``None`` where it is unset, empty where it allows nothing."""
    safe_mode: bool = False
    """Whether ``VLLM_EXT_SAFE_MODE`` is on: no out-of-tree plugin and no class path from the settings is used."""

    def origin(self, key: str) -> Origin:
        """Where the value of ``key`` comes from."""
        return self.origins.get(key, DEFAULT)

    def where(self, key: str) -> str:
        """A setting with its origin, for messages: ``key (origin)``."""
        return f"{key} ({self.origin(key)})"


def load_config(
    config_files: Iterable[Path | str] = (),
    overrides: Sequence[Override] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Read and merge all sources.

    Args:
        config_files: settings files, instead of those that the environment or the usual folders name.
        overrides: values from the command line; a later one wins.
        environ: the environment; ``os.environ`` where not given.

    Raises:
        ConfigError: with everything that is wrong in any source.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    merged: Tree = {}
    for path in find_files(config_files, environ):
        # yaml is slow to import, and most processes read no file.
        from vllm_ext.config.yaml_file import read_settings

        for setting in read_settings(path, problems):
            put(merged, setting)
    _put_environment(merged, environ, problems)
    safe_mode = read_safe_mode(environ, problems)
    for override in overrides:
        for setting in read_override(override, problems):
            put(merged, setting)
    if problems:
        raise ConfigError(_text(problems), problems)
    origins = {setting.path: setting.origin for setting in leaves(merged)}
    return Config(msgspec.convert(values(merged), Settings), origins, read_allow_list(environ), safe_mode)


def _put_environment(merged: Tree, environ: Mapping[str, str], problems: list[str]) -> None:
    replacing, adding = read_environment(environ, problems)
    for setting in replacing:
        put(merged, setting)
    for setting in adding:
        before = find(merged, setting.parts)
        names = all_keys()[setting.path].default if before is None else before.value
        origin = setting.origin if before is None else msgspec.structs.replace(setting.origin, added_to=before.origin)
        put(merged, setting._replace(value=[*names, *setting.value], origin=origin))


def _text(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} mistakes in the settings:\n" + "\n".join(f"  {problem}" for problem in problems)
