"""The values in a configuration: by path, as copies, and as texts that two processes can compare."""

from __future__ import annotations

import copy
import dataclasses
import enum
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from vllm_ext.config.redaction import redact
from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.errors import dotted_path

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_OPTIONS = "additional_config"
"""Its values are those of plugins, and may be secret."""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaf fields of nested dataclasses and the keys of a model's configuration by dotted path, and attributes that
    are no fields, without private ones; collections are copied, since hooks change them.
    """
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{path}."))
        elif isinstance(value, HFConfig):
            flat.update({f"{path}.{key}": copied(item) for key, item in value.to_dict().items()})
        else:
            flat[path] = copied(value)
    added = _added(config).items()
    # An object of the plugin's may not be equal to its copy.
    return flat | {
        f"{prefix}{name}": copied(value) if isinstance(value, dict | list) else value for name, value in added
    }


def added_names(config: Any, prefix: str = "") -> dict[str, list[str]]:
    """Attributes that are no fields, by dotted path, each with the names of the fields that are beside it."""
    names = [field.name for field in dataclasses.fields(config)]
    found = {f"{prefix}{name}": names for name in _added(config)}
    for name in names:
        if dataclasses.is_dataclass(value := getattr(config, name)):
            found |= added_names(value, f"{prefix}{name}.")
    return found


def _added(config: Any) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(config)}
    attributes = getattr(config, "__dict__", {})
    return {name: value for name, value in attributes.items() if name not in fields and not name.startswith("_")}


def copied(value: Any) -> Any:
    """A copy of nested dataclasses, model configurations and collections, whose other values are shared."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not by the constructor, which knows nothing of attributes that a hook has added.
        other = copy.copy(value)
        for name, item in getattr(value, "__dict__", {}).items():
            object.__setattr__(other, name, copied(item))
        return other
    if isinstance(value, HFConfig):
        return HFConfig(copied(value.to_dict()), value.source)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values by path, each as :func:`text_of` it; what plugins keep there by key, and as a part of a hash."""
    texts: dict[str, str] = {}
    for path, value in values.items():
        if path == _OPTIONS and isinstance(value, dict):
            texts |= {f"{path}[{key!r}]": _hash_of(item) for key, item in value.items()}
        else:
            texts[path] = text_of(value)
    return texts


def shown(path: str, value: Any) -> str:
    """``value`` of the field ``path`` for people, without the secrets among the options of plugins."""
    return repr(redact(("options",), value) if path == _OPTIONS else value)


def text_of(value: Any) -> str:
    """The same text for the same value in every process: without addresses, and without the order of sets."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, type):
        return dotted_path(value)
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{text_of(key)}: {text_of(item)}' for key, item in value.items()))}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(text_of, value)))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text_of, value))}]"
    if dataclasses.is_dataclass(value):
        each = (f"{field.name}={text_of(getattr(value, field.name))}" for field in dataclasses.fields(value))
        return f"{type(value).__qualname__}({', '.join(each)})"
    try:
        return _ADDRESS.sub("", repr(value))
    except Exception:  # noqa: BLE001 - of an object that cannot be shown, its class is compared
        return dotted_path(type(value))


def _hash_of(value: Any) -> str:
    return f"(hash {hashlib.sha256(text_of(value).encode()).hexdigest()[:12]})"
