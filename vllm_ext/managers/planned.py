"""stevedore's managers, loading from a plan.

stevedore's own list of entry points comes from a cache on disk, which can be two minutes behind and does not know
distributions; its loading filters by name, and lets SystemExit and AssertionError through. None of that is used here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

from stevedore.driver import DriverManager
from stevedore.extension import Extension, ExtensionManager
from stevedore.hook import HookManager

from vllm_ext.errors import PluginLoadError
from vllm_ext.plan import Decision, Outcome
from vllm_ext.registry.owners import loading


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

    With ``invoke_on_load`` a plugin is also called; a subclass may override :meth:`call`.
    """

    def __init__(self, decisions: Sequence[Decision], *args: Any, **kwargs: Any) -> None:
        self.outcomes: list[Outcome] = []
        self._planned: list[EntryPoint] = [PlannedEntryPoint(decision) for decision in decisions]
        super().__init__(*args, **kwargs)

    def list_entry_points(self) -> list[EntryPoint]:
        return list(self._planned)

    def call(self, decision: Decision, plugin: Any) -> Any:
        """Call a loaded plugin; the result becomes the extension's ``obj``."""
        return plugin()

    def _load_one_plugin(
        self, ep: EntryPoint, invoke_on_load: bool, invoke_args: Any, invoke_kwds: Any
    ) -> Extension[Any] | None:
        decision: Decision = ep.decision  # type: ignore[attr-defined]
        started = time.perf_counter()
        try:
            with loading(decision.name, decision.distribution):
                plugin = ep.load()
                obj = self.call(decision, plugin) if invoke_on_load else None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin that exits or asserts fails like any other
            self.outcomes.append(Outcome.of_error(decision, error, time.perf_counter() - started))
            return None
        self.outcomes.append(Outcome(decision.key, "active", seconds=time.perf_counter() - started))
        return Extension(ep.name, ep, plugin, obj)


class GeneralHooks(PlannedManager, HookManager[Any]):
    """Hooks: all are run."""


class NamedPlugins(PlannedManager, ExtensionManager[Any]):
    """Extensions: each is offered under its name."""


class PlannedDriver(PlannedManager, DriverManager[Any]):
    """A driver: exactly one plugin, which has to load.

    Raises:
        PluginLoadError: it does not, with what it raised as the cause.
    """

    def __init__(self, decision: Decision) -> None:
        self._decision = decision
        super().__init__([decision], decision.group, decision.name, on_missing_entrypoints_callback=None)

    def _init_plugins(self, extensions: list[Extension[Any]]) -> None:
        # Before stevedore says that there is no such driver.
        for outcome in self.outcomes:
            if outcome.error is not None:
                raise load_error(self._decision, outcome) from outcome.error
        super()._init_plugins(extensions)


def load_error(decision: Decision, outcome: Outcome) -> PluginLoadError:
    """The error for a named plugin that failed."""
    return PluginLoadError(
        f"{decision.kind} plugin {decision} failed: {outcome.detail} ({decision.group}: {decision.value})",
        plugin=decision.name,
    )
