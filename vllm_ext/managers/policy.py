"""The one failure policy: what the user named must work; what was merely found may fail, and is reported once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vllm_ext.managers.host_contracts import source_of
from vllm_ext.managers.planned import load_error
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
    if not is_first_report(decision):
        return
    if outcome.state == "unavailable":
        logger.info("%s is left out, since it declined: %s", source_of(decision), outcome.detail)
    else:
        logger.warning("%s is left out, since it failed: %s", source_of(decision), outcome.detail)


def report_once(decision: Decision, complaints: Sequence[str]) -> None:
    """Warn of what may be a mistake in a plugin that is used all the same; once in a process."""
    if complaints and is_first_report(decision):
        for complaint in complaints:
            logger.warning("%s %s", source_of(decision), complaint)


def is_first_report(decision: Decision) -> bool:
    """Whether this process has not been told about the plugin; it counts as told from now on."""
    is_first = decision.key not in _reported
    _reported.add(decision.key)
    return is_first


def forget_reports() -> None:
    """Report everything anew; meant for tests."""
    _reported.clear()
