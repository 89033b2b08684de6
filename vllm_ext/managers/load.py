"""Loading what a plan selected of the kinds that are not run at start-up: one driver, or all extensions of a kind."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from stevedore.extension import Extension

from vllm_ext.contracts.groups import ENTRY_POINT_GROUPS, KIND_OF_GROUP, PluginKind
from vllm_ext.errors import PluginNotFound, did_you_mean, listing
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.managers.planned import NamedPlugins, PlannedDriver, without_secrets
from vllm_ext.managers.policy import settle
from vllm_ext.plan import BoundPlan, Decision, DecisionKey, Outcome, Plan
from vllm_ext.plan.names import matches
from vllm_ext.registry.owners import loading

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OUTCOMES: dict[DecisionKey, Outcome] = {}
"""Of the extensions that were last loaded in this process."""


class LoadedPlugin(NamedTuple):
    """A plugin that works: ``value`` is the class or the object that its kind's contract describes."""

    decision: Decision
    value: Any


def load_group(plan: Plan | BoundPlan, group: str) -> dict[str, Any]:
    """Load the plugins of ``group`` that the plan selected, without calling them.

    Of platforms these are the candidates of a plan, and the chosen one of a bound plan. Keys are names, or
    ``distribution:name`` where a name is not unique.

    A plugin that fails is reported once and left out, unless the user named it.

    Raises:
        PluginNotFound: there is no such group.
        PluginLoadError: a plugin that the user named failed.
    """
    if group not in ENTRY_POINT_GROUPS:
        raise PluginNotFound(
            f"no entry-point group {group!r} is known{did_you_mean(group, ENTRY_POINT_GROUPS)}; "
            f"known: {listing(ENTRY_POINT_GROUPS)}"
        )
    decisions = [decision for decision in plan.used(KIND_OF_GROUP[group].key) if decision.group == group]
    counts = Counter(decision.name for decision in decisions)
    loaded: dict[str, Any] = {}
    for decision, extension in _load_each(plan.plan if isinstance(plan, BoundPlan) else plan, decisions, use=False):
        key = decision.name if counts[decision.name] == 1 else decision.reference
        loaded[key] = extension.plugin
    return loaded


def load_extensions(bound_plan: BoundPlan, kind: PluginKind) -> list[LoadedPlugin]:
    """Load and check all plugins of a kind that the plan selected, in its order.

    A plugin that fails, or whose value does not keep the contract, is reported once and left out.

    Raises:
        PluginLoadError: one that the user named failed.
    """
    each = _load_each(bound_plan.plan, bound_plan.selected(kind.key), use=True)
    return [LoadedPlugin(decision, extension.obj) for decision, extension in each]


def build_extension(bound_plan: BoundPlan, decision: Decision, build: Callable[[], T]) -> T | None:
    """What ``build()`` makes of an extension that was loaded; it is part of whether the plugin works.

    Returns: ``None`` where it failed or declined, which is reported once.

    Raises:
        PluginLoadError: it did, and the user named the plugin.
    """
    built = None
    with settling(bound_plan, decision, "built"):
        built = build()
    return built  # noqa: RET504 - the block may be left before


@contextmanager
def settling(
    bound_plan: BoundPlan, decision: Decision, verb: str, passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """The code of an extension that was loaded runs in the block, which is part of whether the plugin works. Where it
    fails or declines, that is reported once, and the block is left.

    Args:
        verb: what is done with the plugin, for messages: ``built``.
        passing: what is no failure of the plugin, besides an interrupt: that the caller is cancelled.

    Raises:
        PluginLoadError: it failed, and the user named the plugin.
    """
    started = time.perf_counter()
    logger.debug("%s is %s now", source_of(decision), verb)
    try:
        with loading(decision.name, decision.distribution):
            yield
    except KeyboardInterrupt:
        logger.error("interrupted while %s was %s (%s)", source_of(decision), verb, decision.value)
        raise
    except BaseException as error:  # a plugin that exits or asserts fails like any other
        if isinstance(error, passing):
            raise
        seconds = time.perf_counter() - started
        outcome = without_secrets(Outcome.of_error(decision, error, seconds, seconds), bound_plan.plan)
        _OUTCOMES[decision.key] = outcome
        settle(decision, outcome)


def extension_outcomes(bound_plan: BoundPlan, kind: PluginKind) -> list[Outcome]:
    """What became of the plugins of a kind that :func:`load_extensions` has loaded in this process."""
    return [_OUTCOMES[decision.key] for decision in bound_plan.selected(kind.key) if decision.key in _OUTCOMES]


def load_driver(bound_plan: BoundPlan, kind: PluginKind, name: str) -> Any:
    """The class of the one plugin of a kind that the plan selected under ``name``; no other is imported.

    Raises:
        PluginNotFound: the plan selected none of that name.
        PluginLoadError: it failed, or does not keep the contract.
    """
    selected = bound_plan.selected(kind.key)
    decision = next((d for d in selected if d.record and matches(name, d.record)), None)
    if decision is None:
        names = listing(d.name for d in selected)
        raise PluginNotFound(f"{kind.title} plugin {name!r} is not in the plan; selected: {names}", plugin=name)
    return load_chosen(bound_plan.plan, decision)


def load_chosen(plan: Plan, decision: Decision) -> Any:
    """The class of one plugin that was chosen from ``plan``; no other is imported.

    Raises:
        PluginLoadError: it failed, declined, or does not keep the contract.
    """
    return PlannedDriver(plan, decision).extensions[0].obj


def _load_each(plan: Plan, decisions: Iterable[Decision], *, use: bool) -> Iterator[tuple[Decision, Extension[Any]]]:
    """Load one after the other, so that a named one that fails is raised before the next runs; those that work."""
    for decision in decisions:
        manager = NamedPlugins(plan, [decision], namespace=decision.group, invoke_on_load=use)
        if use:
            _OUTCOMES[decision.key] = manager.outcomes[0]
        settle(decision, manager.outcomes[0])
        for extension in manager:
            yield decision, extension
