"""What a process does first that joins an engine: apply the engine's plan, exactly, or refuse."""

from __future__ import annotations

from vllm_ext.contracts.current_platform import current_platform, use_platform
from vllm_ext.contracts.groups import LOGITS_PROCESSOR
from vllm_ext.discovery import scan
from vllm_ext.dispatch.bootstrap import Bootstrapped
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.errors import PlanMismatch
from vllm_ext.managers import (
    activate_bound,
    extension_outcomes,
    load_extensions,
    load_general,
    make_receipt,
    runtime_versions,
    set_default_bound_plan,
    use_bound_plan,
)
from vllm_ext.plan import (
    Difference,
    HandOver,
    Outcome,
    Receipt,
    active_differences,
    differences,
    found_here,
    side_by_side,
)


def make_hand_over(dispatcher: Dispatcher) -> HandOver:
    """What the other processes of the dispatcher's engine are handed; loads the logits processors."""
    _ = dispatcher.logits_processors
    receipt = make_receipt(dispatcher.bound_plan, "front end")
    return HandOver.of(dispatcher.bound_plan, dispatcher.config, receipt.active)


def take_over(hand_over: HandOver, process: str, rank: int | None = None) -> tuple[Bootstrapped, Receipt]:
    """Apply the plan that was handed over. Nothing is chosen here.

    Effects: imports and calls the plan's platform and general plugins, and imports its logits processors; the plan
    becomes the process's default. Where anything that is installed differs from what the plan was made for, no
    plugin is imported.

    Args:
        process, rank: what this process is in the engine.

    Returns: the process, ready to build its part, and the proof of what it runs.

    Raises:
        PlanMismatch: another version of something is installed here, or a plugin that works in the engine's process
            does not work here, or the other way round.
        PluginError: a plugin that the user named failed.
        ValueError: the plan is not one that this vllm_ext can read.
    """
    handed = hand_over.bound_plan()
    versions = runtime_versions(handed.plan.settings.host)
    bound_plan, missing = found_here(handed, scan(), versions)
    refuse(differences(hand_over.identity, bound_plan, missing), _name(process, rank))
    binding = activate_bound(bound_plan)
    current_platform.set_default(binding.platform)
    set_default_bound_plan(binding.bound_plan)
    with use_platform(binding.platform), use_bound_plan(binding.bound_plan):
        loaded = load_general(binding.bound_plan)
        load_extensions(binding.bound_plan, LOGITS_PROCESSOR)
    loaded += extension_outcomes(binding.bound_plan, LOGITS_PROCESSOR)
    receipt = make_receipt(binding.bound_plan, process, rank, loaded)
    refuse(active_differences(hand_over.active, receipt.active), receipt.name, receipt.inactive, loaded)
    config = hand_over.config(binding.bound_plan)
    return Bootstrapped(config, binding, (*binding.bound_plan.outcomes, *loaded)), receipt


def refuse(
    found: list[Difference], here: str, inactive: tuple[str, ...] = (), outcomes: list[Outcome] | None = None
) -> None:
    """PlanMismatch where anything is different, with the differences side by side.

    Args:
        here: the name of this process.
        inactive: why plugins do not work here.
        outcomes: of what was loaded; those that failed have their traceback there.
    """
    if not found:
        return
    reasons = "".join(f"\n  {reason}" for reason in inactive)
    raise PlanMismatch(
        f"{here} would not run what the engine runs:\n{side_by_side(found, 'engine', here)}{reasons}\n"
        "Every process of an engine has to see the same distributions; install the same versions for both, and start "
        "again",
        outcomes=[outcome for outcome in outcomes or () if outcome.state == "failed"],
    )


def _name(process: str, rank: int | None) -> str:
    return process if rank is None else f"{process} {rank}"
