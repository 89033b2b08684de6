"""All sources merged, with the origin of every value.

One rule, per key: command line > environment > file (a later file wins) > default. Mappings merge, lists replace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vllm_ext.config.environment import read_allow_list, read_environment
from vllm_ext.config.files import find_files
from vllm_ext.config.keys import Setting, all_keys, all_sections, unknown_key
from vllm_ext.config.origin import DEFAULT, Origin
from vllm_ext.config.schema import Settings
from vllm_ext.errors import ConfigError


class Override(NamedTuple):
    """A value from the command line or from a keyword: ``key`` is a dotted path, ``where`` names the option."""

    key: str
    value: Any
    where: str


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings, and where each value comes from."""

    settings: Settings
    origins: Mapping[str, Origin]
    """By key path, for every key that a source has set."""
    allow_list: tuple[str, ...] | None = None
    """Names in ``VLLM_PLUGINS``; ``None`` where it is unset, empty where it allows nothing."""

    def origin(self, key: str) -> Origin:
        """Where the value of ``key`` comes from."""
        return self.origins.get(key, DEFAULT)


def load_config(
    config_files: Sequence[Path | str] = (),
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
    merged: dict[str, Setting] = {}
    for path in find_files(config_files, environ):
        # yaml is slow to import, and most processes read no file.
        from vllm_ext.config.yaml_file import read_settings

        merged.update((setting.path, setting) for setting in read_settings(path, problems))
    replacing, adding = read_environment(environ, problems)
    merged.update((setting.path, setting) for setting in replacing)
    for setting in adding:
        before = merged[setting.path].value if setting.path in merged else all_keys()[setting.path].default
        merged[setting.path] = setting._replace(value=[*before, *setting.value])
    for override in overrides:
        merged.update((setting.path, setting) for setting in _read_override(override, problems))
    if problems:
        raise ConfigError(_text(problems))
    origins = {path: setting.origin for path, setting in merged.items()}
    return Config(_build(merged), origins, read_allow_list(environ))


def parse_set(text: str) -> Override:
    """The override in ``KEY=VALUE``, as given to ``--set``; the value is read as YAML.

    Raises:
        ConfigError: it has another form.
    """
    from vllm_ext.config.yaml_file import read_value

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"command line (--set): expected KEY=VALUE, given {text!r}")
    try:
        return Override(key.strip(), read_value(value), f"--set {text}")
    except ValueError as error:
        raise ConfigError(f"command line (--set {text}): {error}") from error


def _read_override(override: Override, problems: list[str]) -> Iterator[Setting]:
    path, value, origin = override.key, override.value, Origin("command line", override.where)
    if path in all_sections() and isinstance(value, Mapping):
        for name, below in value.items():
            yield from _read_override(Override(f"{path}.{name}", below, override.where), problems)
        return
    section, _, name = path.rpartition(".")
    if path in all_sections():
        problems.append(f"{origin}: {path}: expected a mapping of keys to values, given {value!r}")
    elif path not in all_keys():
        known = section if section in all_sections() else ""
        problems.append(f"{origin}: {path}: {unknown_key(known, name if known == section else path)}")
    else:
        key = all_keys()[path]
        try:
            yield Setting(path, key.convert(list(value) if isinstance(value, tuple) else value), origin)
        except ValueError:
            problems.append(f"{origin}: {path}: expected {key.expected}, given {value!r}")


def _build(merged: Mapping[str, Setting]) -> Settings:
    nested: dict[str, Any] = {}
    for path, setting in merged.items():
        *sections, name = path.split(".")
        mapping = nested
        for section in sections:
            mapping = mapping.setdefault(section, {})
        mapping[name] = setting.value
    return msgspec.convert(nested, Settings)


def _text(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} mistakes in the settings:\n" + "\n".join(f"  {problem}" for problem in problems)
