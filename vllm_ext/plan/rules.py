"""Which settings choose among the plugins of a kind."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from vllm_ext.config import Settings
from vllm_ext.contracts.groups import EXECUTOR, GENERAL, PLATFORM, PluginKind
from vllm_ext.plan.decisions import Status


class Rule(NamedTuple):
    """One kind of plugin, and the keys that are about it."""

    kind: PluginKind
    asked_key: str
    everything: str | None
    """The value of ``asked_key`` that asks for all of them."""
    disabled_key: str | None
    status: Status
    """What a plugin that is asked for becomes."""


RULES: tuple[Rule, ...] = (
    Rule(GENERAL, "plugins.general.enabled", "all", "plugins.general.disabled", "selected"),
    Rule(PLATFORM, "platform.driver", "auto", "platform.disabled", "candidate"),
    Rule(EXECUTOR, "engine.executor", None, None, "selected"),
)


def value_of(settings: Settings, key: str) -> Any:
    """The value at a dotted path."""
    return functools.reduce(getattr, key.split("."), settings)
