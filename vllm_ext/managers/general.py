"""General plugins: each runs once in a process, whoever asks and however often."""

from __future__ import annotations

import logging
import os
import threading
from types import ModuleType
from typing import Any

from vllm_ext.contracts.groups import GENERAL, GENERAL_PLUGINS_GROUP
from vllm_ext.errors import ContractError
from vllm_ext.managers.planned import GeneralHooks, load_error
from vllm_ext.plan import BoundPlan, Decision, Outcome

logger = logging.getLogger(__name__)

_Identity = tuple[str, str, str]
"""Distribution, group, name."""


class _OneGeneralPlugin(GeneralHooks):
    """Loads and runs one plugin; with a module as value, its import was the run."""

    def __init__(self, decision: Decision) -> None:
        super().__init__([decision], GENERAL_PLUGINS_GROUP, decision.name, invoke_on_load=True)

    def call(self, decision: Decision, plugin: Any) -> Any:
        if isinstance(plugin, ModuleType):
            return None
        if not callable(plugin):
            raise ContractError(
                f"general plugin {decision}: {decision.value!r} is neither callable nor a module, but {plugin!r}",
                plugin=decision.name,
            )
        return plugin()


class GeneralPlugins:
    """Remembers which general plugins have run in this process.

    A forked child inherits that, since what they registered is inherited as well.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._thread: int | None = None
        """The thread that is running plugins."""
        self._active: dict[_Identity, Outcome] = {}
        self._warned: set[_Identity] = set()

    def load(self, bound_plan: BoundPlan) -> list[Outcome]:
        """Run what the plan selected and has not run yet, in order.

        Returns: one outcome per selected plugin. Called from inside a plugin: of those that have run so far.
        A plugin that failed runs again in the next call.

        Raises:
            PluginLoadError: a plugin that the user named failed; those after it have not run.
        """
        decisions = bound_plan.selected(GENERAL.key)
        if self._thread == threading.get_ident():
            return [self._active[_identity(d)] for d in decisions if _identity(d) in self._active]
        with self._lock:
            self._thread = threading.get_ident()
            try:
                return [self._load_once(decision) for decision in decisions]
            finally:
                self._thread = None

    def _load_once(self, decision: Decision) -> Outcome:
        identity = _identity(decision)
        if identity in self._active:
            return self._active[identity]
        outcome = _OneGeneralPlugin(decision).outcomes[0]
        if outcome.state == "active":
            self._active[identity] = outcome
        elif decision.named:
            raise load_error(decision, outcome) from outcome.error
        elif identity not in self._warned:
            self._warned.add(identity)
            logger.warning("general plugin %s is left out, since it failed: %s", decision, outcome.detail)
        return outcome

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


def _identity(decision: Decision) -> _Identity:
    return decision.distribution, decision.group, decision.name
