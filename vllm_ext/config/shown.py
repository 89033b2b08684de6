"""The settings as commands show them: every value with its origin, and no secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from vllm_ext.config import redaction
from vllm_ext.config.keys import all_keys
from vllm_ext.config.loader import Config
from vllm_ext.config.origin import Origin
from vllm_ext.config.paths import join_path
from vllm_ext.config.schema import Settings

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Shown(NamedTuple):
    """One row: a key, its effective value, and the source of it."""

    key: str
    value: Any
    origin: Origin


def effective(config: Config, redact: bool = True) -> list[Shown]:
    """A row for every key, in the order of the schema; for ``options`` a row for every leaf.

    A mapping without keys is a leaf. Unless ``redact`` is false, no secret is in a value or in an origin.
    """
    settings = msgspec.to_builtins(config.settings)
    rows = ((parts, value) for key in all_keys().values() for parts, value in _leaves(key.parts, settings))
    return [_row(parts, value, config, redact) for parts, value in rows]


def redacted_settings(settings: Settings) -> dict[str, Any]:
    """The settings as nested mappings of plain values, without the secrets in them."""
    return {name: redaction.redact((name,), value) for name, value in msgspec.to_builtins(settings).items()}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a settings file."""
    return {"$schema": _DIALECT, "title": "Settings of vllm-ext", **msgspec.json.schema(Settings)}


def _row(parts: tuple[str, ...], value: Any, config: Config, redact: bool) -> Shown:
    path = join_path(parts)
    origin = config.origin(path)
    if not redact:
        return Shown(path, value, origin)
    shown = redaction.redact(parts, value)
    if shown != value and origin.kind == "command line":
        # An option that was not read by parse_set may have its value in the text.
        origin = msgspec.structs.replace(origin, where=origin.where.partition("=")[0])
    return Shown(path, shown, origin)


def _leaves(parts: tuple[str, ...], settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The key's value, or, where it is a mapping, what lies below it."""
    value: Any = settings
    for part in parts:
        value = value[part]
    yield from _below(parts, value)


def _below(parts: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _below((*parts, name), below)
    else:
        yield parts, value
