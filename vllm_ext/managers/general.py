"""General plugins: each runs once in a process, whoever asks and however often."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_ext.contracts.groups import GENERAL
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.managers.planned import GeneralHooks
from vllm_ext.managers.policy import settle
from vllm_ext.managers.values import accepts_config
from vllm_ext.plan import BoundPlan, Decision, Outcome, Plan

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
"""After so many seconds a thread that waits for another one's plugins says so."""

_Identity = tuple[str, str, str]
"""Distribution, group, name."""


class GeneralPlugins:
    """Remembers which general plugins have run in this process.

    A forked child inherits that, since what they registered is inherited as well.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._thread: int | None = None
        """The thread that is running plugins."""
        self._running: Decision | None = None
        self._active: dict[_Identity, Outcome] = {}

    def load(self, bound_plan: BoundPlan) -> list[Outcome]:
        """Run what the plan selected and has not run yet, in order.

        Returns: one outcome per selected plugin. Called from inside a plugin: of those that have run so far.
        A plugin that failed runs again in the next call.

        Raises:
            PluginLoadError: a plugin that the user named failed; those after it have not run.
        """
        decisions = bound_plan.selected(GENERAL.key)
        if self._thread == threading.get_ident():
            return self.outcomes_of(bound_plan)
        with self._turn():
            self._thread = threading.get_ident()
            try:
                return [self._load_once(bound_plan.plan, decision) for decision in decisions]
            finally:
                self._thread = self._running = None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Until no other thread runs plugins. One that hangs is named, since whoever waits here would hang unheard."""
        if not self._lock.acquire(timeout=_PATIENCE_S):
            logger.warning(
                "%s has been running for %g seconds, and another thread waits for it; if it waits for that thread in "
                "turn, neither goes on",
                source_of(self._running) if self._running else "a general plugin",
                _PATIENCE_S,
            )
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _load_once(self, plan: Plan, decision: Decision) -> Outcome:
        identity = _identity(decision)
        if identity in self._active:
            return self._active[identity]
        self._running = decision
        hooks = GeneralHooks(plan, [decision], decision.group, decision.name, invoke_on_load=True)
        outcome = hooks.outcomes[0]
        if outcome.state == "active":
            self._active[identity] = outcome
            for extension in hooks:
                _warn_of_unused_options(plan, decision, extension.plugin)
        else:
            settle(decision, outcome)
        return outcome

    def outcomes_of(self, bound_plan: BoundPlan) -> list[Outcome]:
        """Of those plugins of the plan that have run here."""
        decisions = bound_plan.selected(GENERAL.key)
        return [self._active[_identity(d)] for d in decisions if _identity(d) in self._active]

    def after_fork(self) -> None:
        """In a forked child: no other thread is left that could be running plugins, or that holds the lock."""
        self._lock = threading.RLock()
        if self._thread != threading.get_ident():
            self._thread = None


_IN_THIS_PROCESS = GeneralPlugins()
os.register_at_fork(after_in_child=lambda: _IN_THIS_PROCESS.after_fork())


def load_general(bound_plan: BoundPlan) -> list[Outcome]:
    """Run the general plugins of the plan that have not run in this process; see :meth:`GeneralPlugins.load`."""
    return _IN_THIS_PROCESS.load(bound_plan)


@contextmanager
def none_has_run() -> Iterator[None]:
    """Inside the block no general plugin counts as run in this process; meant for tests."""
    global _IN_THIS_PROCESS
    before, _IN_THIS_PROCESS = _IN_THIS_PROCESS, GeneralPlugins()
    try:
        yield
    finally:
        _IN_THIS_PROCESS = before


def active_general(bound_plan: BoundPlan) -> list[Outcome]:
    """Of the general plugins of the plan that have run in this process."""
    return _IN_THIS_PROCESS.outcomes_of(bound_plan)


def _identity(decision: Decision) -> _Identity:
    return decision.distribution, decision.group, decision.name


def _warn_of_unused_options(plan: Plan, decision: Decision, plugin: Any) -> None:
    if plan.options_of(decision) and not accepts_config(plugin):
        logger.warning(
            "the options for %s are not handed over: %r has no parameter 'config'", source_of(decision), decision.value
        )
