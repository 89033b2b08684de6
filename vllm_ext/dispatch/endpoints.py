"""The endpoint plugins of a server: loaded, and which of them are for its model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from vllm_ext.contracts.endpoint import EndpointPlugin
from vllm_ext.contracts.groups import ENDPOINT
from vllm_ext.contracts.pooling_params import POOLING_TASKS
from vllm_ext.contracts.vllm_config import ModelConfig
from vllm_ext.errors import ContractError, listing
from vllm_ext.managers import load_extensions, settling
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.plan import BoundPlan, Decision


class LoadedEndpoint(NamedTuple):
    """A plugin that was made, and whose it is: ``endpoint plugin 'x' of acme 1.0``, for messages."""

    decision: Decision
    plugin: EndpointPlugin
    source: str
    required_tasks: tuple[str, ...]
    """The model has to have one of them; where there are none, any model will do."""

    def objection(self, tasks: Collection[str]) -> str:
        """Why it is not for a model with these tasks; empty where it is."""
        if not self.required_tasks or not {*tasks}.isdisjoint(self.required_tasks):
            return ""
        return (
            f"it is for models with one of the tasks {listing(self.required_tasks)}, and this one has {listing(tasks)}"
        )


def load_endpoints(bound_plan: BoundPlan) -> list[LoadedEndpoint]:
    """Import and call the plugins that the plan selected, in its order; what they make is checked.

    A plugin that was merely found and fails is reported once, and left out.

    Raises:
        PluginLoadError: one that the user named failed, or made no endpoint.
    """
    endpoints = []
    for decision, plugin in load_extensions(bound_plan, ENDPOINT):
        with settling(bound_plan, decision, "checked"):
            endpoints.append(LoadedEndpoint(decision, plugin, source_of(decision), _required_tasks(decision, plugin)))
    return endpoints


def possible_tasks(model_config: ModelConfig) -> Sequence[str]:
    """What a model may be asked for, before it is loaded; it may turn out to be less."""
    return ("generate",) if model_config.runner_type == "generate" else POOLING_TASKS


def _required_tasks(decision: Decision, plugin: EndpointPlugin) -> tuple[str, ...]:
    tasks = plugin.required_tasks
    if tasks is None:
        return ()
    if not isinstance(tasks, list | tuple | set | frozenset) or not all(isinstance(task, str) for task in tasks):
        raise ContractError(
            f"{source_of(decision)} has required_tasks {tasks!r}; it takes a tuple of names of tasks, or None",
            plugin=decision.name,
        )
    return tuple(tasks)
