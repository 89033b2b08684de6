"""The setting ``options``: a mapping for each plugin that is named there."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from vllm_ext.config import Config, Origin, Settings
from vllm_ext.config.origin import DEFAULT
from vllm_ext.config.paths import join_path
from vllm_ext.contracts.groups import KIND_OF_GROUP
from vllm_ext.discovery import ExtensionRecord
from vllm_ext.errors import VllmExtError
from vllm_ext.plan.decisions import Decision
from vllm_ext.plan.names import matches, not_found


def options_of(record: ExtensionRecord, settings: Settings) -> dict[str, Any]:
    """The options for a plugin, a copy; those under ``distribution:name`` win over those under ``name``."""
    given = sorted((name for name in settings.options if matches(name, record)), key=lambda name: ":" in name)
    merged: dict[str, Any] = {}
    for name in given:
        merged |= copy.deepcopy(settings.options[name])
    return merged


def options_hash(record: ExtensionRecord, settings: Settings) -> str:
    """SHA-256 of the options for a plugin; empty where it has none. A hash, since options may be secret."""
    options = options_of(record, settings)
    if not options:
        return ""
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()


def check_options(records: Sequence[ExtensionRecord], config: Config) -> Iterator[tuple[Decision, VllmExtError]]:
    """Names in the options that no plugin has: what is meant for it would be lost."""
    known = [record for record in records if record.group in KIND_OF_GROUP]
    for name in config.settings.options:
        if any(matches(name, record) for record in known):
            continue
        origin = origin_of(name, config)
        error = not_found(name, "plugin", f"options ({origin})", known, records)
        yield (
            Decision("", name, None, "missing", "options are given for it, and it is not installed", origin=origin),
            error,
        )


def origin_of(name: str, config: Config) -> Origin:
    """Where the options for ``name`` come from: the source of the first of them."""
    prefix = join_path(("options", name))
    paths = (path for path in config.origins if path == prefix or path.startswith(f"{prefix}."))
    return next((config.origins[path] for path in paths), DEFAULT)
