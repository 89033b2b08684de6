"""What every process of an engine does first: settle the plan, bind the platform, run the general plugins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_ext.config import Config, load_config
from vllm_ext.contracts.current_platform import refuse_while_probing, use_platform
from vllm_ext.dispatch.default_platform import as_default, current_platform
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.planning import make_plan
from vllm_ext.managers import (
    PlatformBinding,
    bind_platform,
    find_bound_plan,
    load_general,
    load_group,
    use_bound_plan,
)
from vllm_ext.plan import Outcome, Plan


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """A process that is ready to build engines."""

    config: Config
    binding: PlatformBinding
    outcomes: tuple[Outcome, ...]
    """What became of the platform candidates and of the general plugins."""

    def dispatcher(self, *, progress: bool = False) -> Dispatcher:
        """A dispatcher for one engine."""
        return Dispatcher(self.binding, self.config, progress=progress)


def bootstrap(config: Config, plan: Plan | None = None) -> Bootstrapped:
    """Bind the platform, then run the general plugins for it. May be called any number of times.

    Effects: imports and calls the selected plugins. The first platform and plan bound in a process become its default.

    Args:
        config: the settings.
        plan: what :func:`make_plan` gave for them, where that was called already.
    """
    binding = bind_platform(make_plan(config) if plan is None else plan)
    current_platform.default_or(lambda: as_default(binding))
    with use_platform(binding.platform), use_bound_plan(binding.bound_plan):
        loaded = load_general(binding.bound_plan)
    return Bootstrapped(config, binding, (*binding.bound_plan.outcomes, *loaded))


def load_general_plugins() -> None:
    """Run the general plugins of the plan that is in force here: the running engine's, else the process's.

    In a process where nothing was started yet, the settings of environment and files decide. Each plugin runs once per
    process, however often this is called.
    """
    bound_plan = find_bound_plan()
    if bound_plan is None:
        bootstrap(load_config())
    else:
        load_general(bound_plan)


def load_plugins_by_group(group: str) -> dict[str, Any]:
    """Load the plugins of one entry-point group that the plan in force here selected, without calling them.

    Returns: plugins by name, in plan order; where two distributions have a name, it is ``distribution:name``. One that
    fails to load is reported and left out.

    Raises:
        PluginNotFound: there is no such group.
        PluginLoadError: one that the user named failed to load.
    """
    refuse_while_probing("for the plugins of a group")
    return load_group(find_bound_plan() or make_plan(load_config()), group)
