"""stevedore's managers, loading from a plan.

stevedore's own list of entry points comes from a cache on disk, which can be two minutes behind and does not know
distributions; its loading filters by name, and lets SystemExit and AssertionError through. None of that is used here.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

from stevedore.driver import DriverManager
from stevedore.extension import Extension, ExtensionManager
from stevedore.hook import HookManager

from vllm_ext.config.redaction import scrub, secrets_in
from vllm_ext.errors import PluginLoadError
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.managers.values import use
from vllm_ext.plan import Decision, Outcome, Plan
from vllm_ext.registry.owners import loading

logger = logging.getLogger(__name__)


class PlannedEntryPoint(EntryPoint):
    """The entry point of a decision, with its distribution where that has a metadata folder."""

    decision: Decision

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.name, decision.value, decision.group)
        folder = Path(decision.location)
        distribution = Distribution.at(folder) if folder.is_dir() else None
        # An EntryPoint refuses assignment, as it is immutable.
        vars(self).update(decision=decision, dist=distribution)


class PlannedManager(ExtensionManager[Any]):
    """Loads the plugins of ``decisions`` in their order; what became of each is in ``outcomes``, in the same order.

    With ``invoke_on_load`` a plugin is also used as its kind says: the result is the extension's ``obj``. ``plan`` has
    the options for it.
    """

    def __init__(self, plan: Plan, decisions: Sequence[Decision], *args: Any, **kwargs: Any) -> None:
        self.outcomes: list[Outcome] = []
        self.plan = plan
        self._planned: list[EntryPoint] = [PlannedEntryPoint(decision) for decision in decisions]
        super().__init__(*args, **kwargs)

    def list_entry_points(self) -> list[EntryPoint]:
        return list(self._planned)

    def use(self, decision: Decision, plugin: Any) -> Any:
        """What a loaded plugin gives, checked against its contract."""
        return use(decision, plugin, self.plan.options_of(decision), self.plan.settings.host)

    def _load_one_plugin(
        self, ep: EntryPoint, invoke_on_load: bool, invoke_args: Any, invoke_kwds: Any
    ) -> Extension[Any] | None:
        decision: Decision = ep.decision  # type: ignore[attr-defined]
        started = time.perf_counter()
        imported: float | None = None
        # Said beforehand: of a plugin that hangs, or ends the process, there is no other word.
        logger.debug("%s is imported now: %s", source_of(decision), decision.value)
        try:
            with loading(decision.name, decision.distribution, ep.module):
                plugin = ep.load()
                imported = time.perf_counter()
                if invoke_on_load:
                    logger.debug("%s is called now", source_of(decision))
                obj = self.use(decision, plugin) if invoke_on_load else None
        except KeyboardInterrupt:
            verb = "imported" if imported is None else "called"
            logger.error("interrupted while %s was %s (%s)", source_of(decision), verb, decision.value)
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin that exits or asserts fails like any other
            outcome = Outcome.of_error(decision, error, *_times(started, imported))
            self.outcomes.append(without_secrets(outcome, self.plan))
            return None
        seconds, call_seconds = _times(started, imported)
        self.outcomes.append(Outcome(decision.key, "active", seconds=seconds, call_seconds=call_seconds))
        return Extension(ep.name, ep, plugin, obj)


class GeneralHooks(PlannedManager, HookManager[Any]):
    """Hooks: all are run."""


class NamedPlugins(PlannedManager, ExtensionManager[Any]):
    """Extensions: each is offered under its name."""


class PlannedDriver(PlannedManager, DriverManager[Any]):
    """A driver: exactly one plugin, which has to load and to keep its contract.

    Raises:
        PluginLoadError: it does not, with what it raised as the cause.
    """

    def __init__(self, plan: Plan, decision: Decision) -> None:
        self._decision = decision
        super().__init__(plan, [decision], decision.group, decision.name, invoke_on_load=True)

    def _load_plugins(self, *args: Any, **kwargs: Any) -> list[Extension[Any]]:
        # Else stevedore warns that it "could not load" the name. It takes an argument for that, and drops it.
        self._on_missing_entrypoints_callback = None
        return super()._load_plugins(*args, **kwargs)

    def _init_plugins(self, extensions: list[Extension[Any]]) -> None:
        # Before stevedore says that there is no such driver.
        for outcome in self.outcomes:
            if outcome.error is not None:
                raise load_error(self._decision, outcome) from outcome.error
        super()._init_plugins(extensions)


def load_error(decision: Decision, outcome: Outcome) -> PluginLoadError:
    """The error for a named plugin that failed, or that declined."""
    verb = "declined" if outcome.state == "unavailable" else "failed"
    return PluginLoadError(
        f"{source_of(decision)} {verb}: {outcome.detail} ({decision.group}: {decision.value})",
        plugin=decision.name,
        outcomes=[outcome],
    )


def without_secrets(outcome: Outcome, plan: Plan) -> Outcome:
    """The outcome without the secrets among the options in its texts: plugins may repeat what they were given."""
    secrets = secrets_in(plan.settings)
    if not secrets:
        return outcome
    text = None if outcome.traceback is None else scrub(outcome.traceback, secrets)
    return dataclasses.replace(outcome, detail=scrub(outcome.detail, secrets), traceback=text)


def _times(started: float, imported: float | None) -> tuple[float, float]:
    """Seconds in all, and of these the seconds after the import."""
    now = time.perf_counter()
    return now - started, now - imported if imported is not None else 0.0
