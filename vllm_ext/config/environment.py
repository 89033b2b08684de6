"""Settings from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_ext import envs
from vllm_ext.config.keys import REDACTED, Key, Setting, all_keys, shorten
from vllm_ext.config.options import read_options
from vllm_ext.config.origin import Origin
from vllm_ext.config.redaction import may_hold_secret
from vllm_ext.errors import did_you_mean

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")
_OF_OURS = [name for name in envs.VARIABLES if name.startswith(envs.PREFIX) and "<" not in name]


def variable_of(path: str) -> str:
    """Name of the environment variable for the key ``path``."""
    return envs.PREFIX + path.upper().replace(".", "__")


def read_allow_list(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Names in ``VLLM_PLUGINS``; ``None`` where it is unset, which is not the same as empty."""
    text = environ.get(envs.VLLM_PLUGINS)
    return None if text is None else tuple(split_names(text))


def read_safe_mode(environ: Mapping[str, str], problems: list[str]) -> bool:
    """Whether ``VLLM_EXT_SAFE_MODE`` is on; a word that says neither is added to ``problems``."""
    text = environ.get(envs.VLLM_EXT_SAFE_MODE, "")
    try:
        return _truth(text)
    except ValueError:
        words = f"{', '.join(_TRUE)}, or {', '.join(filter(None, _FALSE))}"
        problems.append(
            f"{Origin('environment', envs.VLLM_EXT_SAFE_MODE)}: expected {words}, given {shorten(repr(text))}"
            f"{did_you_mean(text.lower(), (*_TRUE, *_FALSE))}"
        )
        return False


def read_environment(environ: Mapping[str, str], problems: list[str]) -> tuple[list[Setting], list[Setting]]:
    """Settings that replace a value, and settings whose names are added to a list.

    What is wrong with a variable is added to ``problems``.
    """
    keys = {variable_of(path): key for path, key in all_keys().items()}
    replacing: list[Setting] = []
    adding: list[Setting] = []
    for name in sorted(name for name in environ if name.startswith(envs.PREFIX) and name not in _OF_OURS):
        origin, text = Origin("environment", name), environ[name]
        key = keys.get(name)
        if key is None:
            problems.append(f"{origin}: {_unknown(name, list(keys))}")
        elif key.is_mapping:
            replacing += _read_json(key, text, origin, problems)
        elif key.path.startswith("plugins.") and key.path.endswith(".enabled"):
            kept, excluded = _split_excluded(text)
            if excluded:
                adding.append(Setting((*key.parts[:-1], "disabled"), excluded, origin))
            if kept or not excluded:
                replacing += _read(key, ",".join(kept), origin, problems)
        else:
            replacing += _read(key, text, origin, problems)
    return replacing, adding


def split_names(text: str) -> list[str]:
    """Elements of a comma-separated list, without the blanks around them; an empty element is none."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _split_excluded(text: str) -> tuple[list[str], list[str]]:
    """A list's elements, and the names of those written ``-name``; a lone minus is a name, which none will have."""
    names = split_names(text)
    excluded = [name for name in names if name.startswith("-") and name != "-"]
    return [name for name in names if name not in excluded], [name[1:].strip() for name in excluded]


def _unknown(name: str, known: list[str]) -> str:
    mapping = next((variable for variable in known if name.startswith(f"{variable}__")), None)
    if mapping:
        return f"no setting has this variable (did you mean {mapping!r}, with a JSON object as its value?)"
    hint = did_you_mean(name, [*known, *_OF_OURS, envs.VLLM_PLUGINS])
    return f"no setting has this variable{hint}; a setting's variable is {envs.PREFIX} and its key path, joined by __"


def _read(key: Key, text: str, origin: Origin, problems: list[str]) -> list[Setting]:
    try:
        return [Setting(key.parts, key.convert(_typed(key, text)), origin)]
    except ValueError:
        problems.append(f"{origin}: {key.path}: {key.mismatch(text)}")
        return []


def _read_json(key: Key, text: str, origin: Origin, problems: list[str]) -> list[Setting]:
    """Settings in a JSON object; an empty variable has none."""
    # Most processes have no such variable.
    import json

    try:
        value = json.loads(text, object_pairs_hook=_unique_names) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        given = REDACTED if may_hold_secret(key.path, text) else shorten(repr(text))
        # The decoder's own text has no part of the value in it, only where it stopped.
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        problems.append(f"{origin}: {key.path}: expected {key.expected}, as JSON, given {given} ({why})")
        return []
    return list(read_options(key.parts, value, origin, problems))


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"the key {name!r} stands twice")
        mapping[name] = value
    return mapping


def _truth(text: str) -> bool:
    """What a word for yes or no says; ValueError where it is none."""
    word = text.strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise ValueError(f"{text!r} is neither true nor false")
    return word in _TRUE


def _typed(key: Key, text: str) -> Any:
    """``text`` as the key's type wants it: the type decides, so that no word needs quotes."""
    text = text.strip() if not key.accepts(str) or key.accepts(list) else text
    if text in key.choices:
        return text
    # An empty variable is an empty list where one may stand, as it allows nothing, and null elsewhere.
    if key.accepts(None) and (text == "null" or (text == "" and not key.accepts(list))):
        return None
    if key.accepts(list):
        names = split_names(text)
        return names[0] if key.accepts(str) and len(names) == 1 else names
    if key.accepts(str) or key.choices:
        return text
    if key.accepts(bool):
        return _truth(text)
    return float(text) if key.accepts(float) else int(text)
