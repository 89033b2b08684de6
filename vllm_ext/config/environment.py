"""Settings from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_ext import envs
from vllm_ext.config.keys import Key, Setting, all_keys
from vllm_ext.config.origin import Origin
from vllm_ext.errors import did_you_mean


def variable_of(path: str) -> str:
    """Name of the environment variable for the key ``path``."""
    return envs.PREFIX + path.upper().replace(".", "__")


def read_allow_list(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Names in ``VLLM_PLUGINS``; ``None`` where it is unset, which is not the same as empty."""
    text = environ.get(envs.VLLM_PLUGINS)
    return None if text is None else tuple(split_names(text))


def read_environment(environ: Mapping[str, str], problems: list[str]) -> tuple[list[Setting], list[Setting]]:
    """Settings that replace a value, and settings whose names are added to a list.

    What is wrong with a variable is added to ``problems``.
    """
    keys = {variable_of(path): key for path, key in all_keys().items()}
    replacing: list[Setting] = []
    adding: list[Setting] = []
    for name in sorted(name for name in environ if name.startswith(envs.PREFIX) and name not in envs.VARIABLES):
        origin = Origin("environment", name)
        if name not in keys:
            hint = did_you_mean(name, [*keys, *envs.VARIABLES])
            problems.append(
                f"{origin}: no setting has this variable{hint}; "
                f"a setting's variable is {envs.PREFIX} and its key path, joined by __"
            )
            continue
        key, text = keys[name], environ[name]
        if key.path.startswith("plugins.") and key.path.endswith(".enabled"):
            kept, excluded = _split_excluded(text)
            if excluded:
                adding.append(Setting(key.path.removesuffix("enabled") + "disabled", excluded, origin))
                if not kept:
                    continue
                text = ",".join(kept)
        try:
            replacing.append(Setting(key.path, key.convert(_typed(key, text)), origin))
        except ValueError:
            problems.append(f"{origin}: {key.path}: expected {key.expected}, given {environ[name]!r}")
    return replacing, adding


def split_names(text: str) -> list[str]:
    """Elements of a comma-separated list, without the blanks around them; an empty element is none."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _split_excluded(text: str) -> tuple[list[str], list[str]]:
    """A list's elements, and the names of those written ``-name``."""
    names = split_names(text)
    excluded = [name[1:].strip() for name in names if name.startswith("-")]
    return [name for name in names if not name.startswith("-")], excluded


def _typed(key: Key, text: str) -> Any:
    """``text`` as the key's type wants it: the type decides, so that no word needs quotes."""
    text = text.strip() if not key.accepts_string or key.accepts_list else text
    if text in key.choices:
        return text
    if key.accepts_null and text in ("", "null"):
        return None
    if key.accepts_list:
        names = split_names(text)
        return names[0] if key.accepts_string and len(names) == 1 else names
    if key.accepts_string or key.choices:
        return text
    return int(text)
