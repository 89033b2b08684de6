"""Which settings files are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from vllm_ext import envs
from vllm_ext.errors import ConfigError

_SYSTEM_FOLDER = Path("/etc/vllm-ext")


def find_files(config_files: Iterable[Path | str], environ: Mapping[str, str]) -> list[Path]:
    """Files to read, in the order in which later ones win; a named one need not exist.

    The current directory is never looked at: a folder that one stands in must not choose code.
    """
    # Once, since a generator, as of Path.glob(), has its files no second time.
    if files := list(config_files):
        if "" in files:
            raise ConfigError("settings file: expected the path of a YAML file, given an empty one")
        return [Path(file) for file in files]
    if named := [part for part in environ.get(envs.VLLM_EXT_CONFIG, "").split(os.pathsep) if part.strip()]:
        return [Path(part) for part in named]
    for folder in (*_user_folder(environ), _SYSTEM_FOLDER):
        main = folder / "vllm-ext.yaml"
        try:
            # A link that leads nowhere, or a folder in the file's place, is there, and an error when it is read.
            found = [*([main] if os.path.lexists(main) else []), *_files_in(folder / "vllm-ext.d")]
        except OSError as error:
            raise ConfigError(
                f"settings file {error.filename or main} cannot be looked for: {error.strerror}. Correct HOME or "
                f"XDG_CONFIG_HOME, or name a file with --config-file or {envs.VLLM_EXT_CONFIG}"
            ) from error
        if found:
            return found
    return []


def _files_in(folder: Path) -> list[Path]:
    """The YAML files in a folder in the order of their names; none where there is no such folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names) if name.endswith(".yaml")]


def _user_folder(environ: Mapping[str, str]) -> list[Path]:
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", ""), ".config")
    # A relative path would be one below the current directory; the XDG specification has it ignored.
    return [Path(base) / "vllm-ext"] if os.path.isabs(base) else []
