"""What must not be shown: values of keys that are marked secret, and options whose name says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vllm_ext.config.keys import REDACTED, all_keys
from vllm_ext.config.paths import join_path

_SECRET = re.compile(r"token|secret|password|passwd|credential|api[_-]?key|private[_-]?key", re.IGNORECASE)


def is_secret(parts: tuple[str, ...]) -> bool:
    """Whether the value of the key with these parts must not be shown.

    An option's own name decides, or that of a mapping around it; a plugin may be called what it likes.
    """
    if key := all_keys().get(join_path(parts)):
        return key.secret
    top = all_keys().get(parts[0])
    return top is not None and top.is_mapping and any(_SECRET.search(name) for name in parts[2:])


def redact(parts: tuple[str, ...], value: Any) -> Any:
    """A copy of ``value`` without the secrets in it; an unset one, null, is none."""
    if value is None:
        return None
    if is_secret(parts):
        return REDACTED
    if isinstance(value, Mapping):
        return {name: redact((*parts, str(name)), below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [redact(parts, element) for element in value]
    return value


def may_hold_secret(key: str, text: str) -> bool:
    """Whether ``text``, which gives a value to ``key``, has to stay out of messages.

    A misspelt key counts as if it were a plugin's: what was meant is not known.
    """
    known = all_keys().get(key)
    if known and not known.is_mapping:
        return known.secret
    return _SECRET.search(text) is not None
