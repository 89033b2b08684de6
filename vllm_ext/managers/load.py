"""Loading single plugins, and the plugins of one group."""

from __future__ import annotations

import logging
from typing import Any

from vllm_ext.contracts.executor import Executor
from vllm_ext.contracts.groups import EXECUTOR, KIND_OF_GROUP
from vllm_ext.errors import ContractError, PluginNotFound, did_you_mean, listing
from vllm_ext.managers.planned import NamedPlugins, PlannedDriver, load_error
from vllm_ext.plan import BoundPlan, Plan
from vllm_ext.plan.names import matches

logger = logging.getLogger(__name__)


def load_group(plan: Plan, group: str) -> dict[str, Any]:
    """Load the plugins of ``group`` that the plan selected (of platforms: its candidates), without calling them.

    A plugin that fails is reported once and left out, unless the user named it.

    Raises:
        PluginNotFound: there is no such group.
        PluginLoadError: a plugin that the user named failed.
    """
    if group not in KIND_OF_GROUP:
        raise PluginNotFound(
            f"no entry-point group {group!r} is known{did_you_mean(group, KIND_OF_GROUP)}; "
            f"known: {listing(KIND_OF_GROUP)}"
        )
    decisions = [d for d in plan.decisions if d.group == group and d.status in ("selected", "candidate")]
    manager = NamedPlugins(decisions, namespace=group)
    for decision, outcome in zip(decisions, manager.outcomes, strict=True):
        if outcome.error is None:
            continue
        if decision.named:
            raise load_error(decision, outcome) from outcome.error
        logger.warning("%s plugin %s is left out, since it failed: %s", decision.kind, decision, outcome.detail)
    return {extension.name: extension.plugin for extension in manager}


def load_executor_cls(bound_plan: BoundPlan, name: str) -> type[Executor]:
    """The executor class that the plan selected under ``name``.

    Raises:
        PluginNotFound: the plan selected none of that name.
        PluginLoadError: it failed to load. ContractError: it is not an executor.
    """
    selected = bound_plan.selected(EXECUTOR.key)
    decision = next((d for d in selected if d.record and matches(name, d.record)), None)
    if decision is None:
        raise PluginNotFound(
            f"executor plugin {name!r} is not in the plan; selected: {listing(d.name for d in selected)}", plugin=name
        )
    executor_cls = PlannedDriver(decision).extensions[0].plugin
    if not isinstance(executor_cls, type) or not issubclass(executor_cls, Executor):
        raise ContractError(
            f"executor plugin {decision}: {decision.value!r} is not a subclass of "
            f"{Executor.__module__}.{Executor.__qualname__}, but {executor_cls!r}",
            plugin=decision.name,
        )
    return executor_cls
