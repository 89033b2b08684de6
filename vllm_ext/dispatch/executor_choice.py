"""The executor that a platform's hook asks for, under vLLM's names as well."""

from __future__ import annotations

from vllm_ext.contracts.groups import EXECUTOR
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.dispatch.hooks import Change
from vllm_ext.errors import AmbiguousPlugin, PluginNotFound, did_you_mean, listing
from vllm_ext.plan import BoundPlan, Decision

PATH = "parallel_config.distributed_executor_backend"
_USABLE = ("selected", "available", "duplicate")
"""Statuses of what is installed and admitted; a duplicate is told apart by the name of its distribution."""
_VLLMS_NAMES = {"mp": "multiproc", "uni": "uniproc"}


def with_own_names(vllm_config: VllmConfig, changes: tuple[Change, ...]) -> tuple[Change, ...]:
    """The changes with the name of an executor here in place of vLLM's, which is put into the configuration."""
    parallel_config = vllm_config.parallel_config
    parallel_config.distributed_executor_backend = _own_name(parallel_config.distributed_executor_backend)
    named = (change._replace(after=_own_name(change.after)) if change.path == PATH else change for change in changes)
    return tuple(change for change in named if change.path != PATH or change.after != change.before)


def executor_of_hooks(bound_plan: BoundPlan, changes: tuple[Change, ...]) -> Decision | None:
    """The plugin that a hook asks for, if one does: any that is installed, as the user had named none.

    Raises:
        PluginNotFound: there is none of that name, or the settings do not admit it.
        AmbiguousPlugin: there are several.
    """
    change = next((change for change in reversed(changes) if change.path == PATH), None)
    if change is None:
        return None
    asks = f"platform plugin {change.plugin!r}: {change.hook}() sets {PATH} to {change.after!r}"
    executors = [d for d in bound_plan.plan.decisions if d.kind == EXECUTOR.key and d.record is not None]
    usable = {d.name for d in executors if d.status in _USABLE}
    found = bound_plan.plan.find(EXECUTOR.key, change.after) if isinstance(change.after, str) else ()
    fitting = [d for d in found if d.status in _USABLE]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " or ".join(sorted(d.reference for d in fitting))
        raise AmbiguousPlugin(f"{asks}, which is installed more than once; the hook should set it to {names}")
    if found:
        why = f"{found[0]} is {found[0].status}: {found[0].reason}"
    else:
        why = f"no executor plugin of that name is installed{did_you_mean(str(change.after), usable)}"
    raise PluginNotFound(f"{asks}, and {why}; to be had: {listing(usable)}", plugin=change.plugin)


def _own_name(backend: str) -> str:
    return _VLLMS_NAMES.get(backend, backend) if isinstance(backend, str) else backend
