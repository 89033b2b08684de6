"""``options``: a mapping for each plugin, whose keys only the plugin knows. They merge key by key like all others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_ext.config.keys import REDACTED, Setting, all_keys, shorten
from vllm_ext.config.origin import Origin
from vllm_ext.config.paths import join_path
from vllm_ext.config.redaction import may_hold_secret

MAPPINGS = 2
"""The first parts of an option's path, ``options`` and the plugin's name, hold mappings and nothing else."""
MAX_DEPTH = 100
"""Mappings and lists in each other at most: below what Python's own recursion bears, wherever it is called from."""
TOO_DEEP = f"values are nested in more than {MAX_DEPTH} levels"
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
"""Between these are the integers that the processes of an engine can hand to each other."""
_PLAIN = "null, true, false, a number, a string, a list or a mapping"


def read_options(parts: tuple[str, ...], value: Any, origin: Origin, problems: list[str]) -> Iterator[Setting]:
    """A setting for each leaf of ``value``, which is given to the key with these parts.

    An empty mapping is a leaf: it names a plugin, or a key, without a value for it. What is wrong is added to
    ``problems``.
    """
    faults = [(number, fault) for number, part in enumerate(parts) if (fault := not_carried(part))]
    if len(parts) > MAX_DEPTH:
        problems.append(f"{origin}: {join_path(parts[:MAPPINGS])}: {TOO_DEEP}")
    elif faults:
        number, fault = faults[0]
        problems.append(f"{origin}: {join_path(parts[:number])}: {fault} in a key")
    elif isinstance(value, Mapping) and value:
        for name, below in value.items():
            if isinstance(name, str):
                yield from read_options((*parts, name), below, origin, problems)
            else:
                problems.append(f"{origin}: {join_path(parts)}: expected a string as key, given {name!r}; quote it")
    elif isinstance(value, Mapping) or len(parts) > MAPPINGS:
        try:
            yield Setting(parts, plain(value), origin)
        except ValueError as error:
            problems.append(f"{origin}: {join_path(parts)}: {error}")
    else:
        path, given = join_path(parts), shorten(repr(value))
        shown = REDACTED if may_hold_secret(path, f"{path}={value!r}") else given
        problems.append(f"{origin}: {path}: expected {expected(parts)}, given {shown}")


def expected(parts: tuple[str, ...]) -> str:
    """What may stand at these parts, for people."""
    if len(parts) == MAPPINGS:
        return "a mapping"
    key = all_keys().get(join_path(parts))
    return key.expected if key else _PLAIN


def plain(value: Any, depth: int = 0) -> Any:
    """A copy of ``value`` that shares nothing with it; ValueError where something is no plain YAML value."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected {_PLAIN}, given {value}, which JSON does not have")
    if fault := not_carried(value):
        raise ValueError(fault)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > MAX_DEPTH:
        raise ValueError(TOO_DEEP)
    if isinstance(value, list | tuple):
        return [plain(element, depth + 1) for element in value]
    if isinstance(value, Mapping):
        if strange := [name for name in value if not isinstance(name, str)]:
            raise ValueError(f"expected a string as key, given {strange[0]!r}; quote it")
        if fault := next(filter(None, map(not_carried, value)), None):
            raise ValueError(f"{fault} in a key")
        return {name: plain(below, depth + 1) for name, below in value.items()}
    raise ValueError(f"expected {_PLAIN}, given a {type(value).__name__}")


def not_carried(value: Any) -> str | None:
    """Why ``value`` cannot be handed to another process of the engine, which would fail without naming its setting.

    Repeats as little of it as possible, as it may be a secret.
    """
    if isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        which = "larger" if value > 0 else "smaller"
        return f"expected an integer from -2**63 to 2**64 - 1, given a {which} one; quote it"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"expected text that UTF-8 can express, given {value[error.start]!r}"
    return None
