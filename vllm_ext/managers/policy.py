"""The one failure policy: what the user named must work; what was merely found may fail, and is reported once."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vllm_ext.managers.planned import load_error
from vllm_ext.managers.values import source_of
from vllm_ext.plan import Decision, DecisionKey, Outcome

logger = logging.getLogger(__name__)


_reported: set[DecisionKey] = set()
"""Plugins that this process has been told about."""


def settle(decision: Decision, outcome: Outcome) -> None:
    """Raise or report an outcome that is not ``active``.

    Raises:
        PluginLoadError: the user named the plugin; the plugin's own exception is the cause.
    """
    if outcome.state == "active":
        return
    if decision.named:
        raise load_error(decision, outcome) from outcome.error
    if decision.key in _reported:
        return
    _reported.add(decision.key)
    if outcome.state == "unavailable":
        logger.info("%s is left out, since it declined: %s", source_of(decision), outcome.detail)
    else:
        logger.warning("%s is left out, since it failed: %s", source_of(decision), outcome.detail)


def report_once(decision: Decision, complaints: Iterable[str]) -> None:
    """Warn of what may be a mistake in a plugin that is used all the same; once in a process."""
    if decision.key in _reported:
        return
    for complaint in complaints:
        _reported.add(decision.key)
        logger.warning("%s %s", source_of(decision), complaint)


def forget_reports() -> None:
    """Report everything anew; meant for tests."""
    _reported.clear()
