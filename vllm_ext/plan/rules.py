"""Which settings choose among the plugins of a kind."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from vllm_ext.config import Settings
from vllm_ext.contracts.groups import (
    ENDPOINT,
    EXECUTOR,
    GENERAL,
    IO_PROCESSOR,
    LOGITS_PROCESSOR,
    PLATFORM,
    STAT_LOGGER,
    PluginKind,
)
from vllm_ext.plan.decisions import Status


class Rule(NamedTuple):
    """One kind of plugin, and the keys that are about it."""

    kind: PluginKind
    asked_key: str
    """The setting that asks for plugins: a name, a list of names, ``everything``, or ``None`` for none."""
    everything: str | None
    """The value of ``asked_key`` that asks for all of them."""
    disabled_key: str | None
    status: Status = "selected"
    """What a plugin that is asked for becomes."""
    permitted_key: str | None = None
    """The setting that names those that may be asked for, where that is another one than ``asked_key``."""
    in_tree_off_key: str | None = None
    """The setting by which ``everything`` leaves out what comes with vllm_ext, where it is true."""
    is_dispensable: bool = False
    """Whether an engine starts without the driver that is asked for, where safe mode leaves it out."""


def _enabled(kind: PluginKind) -> Rule:
    return Rule(kind, f"plugins.{kind.key}.enabled", "all", f"plugins.{kind.key}.disabled")


RULES: tuple[Rule, ...] = (
    _enabled(GENERAL),
    Rule(PLATFORM, "platform.driver", "auto", "platform.disabled", "candidate"),
    Rule(
        IO_PROCESSOR,
        "plugins.io_processor.use",
        None,
        "plugins.io_processor.disabled",
        permitted_key="plugins.io_processor.enabled",
        is_dispensable=True,
    ),
    _enabled(STAT_LOGGER)._replace(in_tree_off_key="engine.disable_log_stats"),
    _enabled(ENDPOINT),
    _enabled(LOGITS_PROCESSOR),
    Rule(EXECUTOR, "engine.executor", None, None),
)


def value_of(settings: Settings, key: str) -> Any:
    """The value at a dotted path."""
    return functools.reduce(getattr, key.split("."), settings)
