"""What a process does first that joins an engine: apply the engine's plan, exactly, or refuse."""

from __future__ import annotations

from vllm_ext.contracts.current_platform import current_platform, use_platform
from vllm_ext.contracts.groups import LOGITS_PROCESSOR
from vllm_ext.discovery import scan
from vllm_ext.dispatch.bootstrap import Bootstrapped
from vllm_ext.dispatch.config_values import as_texts, flatten
from vllm_ext.dispatch.default_platform import as_default
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.hooks import hook_values, values_before_hooks
from vllm_ext.errors import PlanMismatch
from vllm_ext.managers import (
    activate_bound,
    extension_outcomes,
    load_extensions,
    load_general,
    make_receipt,
    runtime_versions,
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
    value_differences,
)


def make_hand_over(dispatcher: Dispatcher) -> HandOver:
    """What the other processes of the dispatcher's engine are handed; loads the logits processors."""
    dispatcher.load_logits_processors()
    receipt = make_receipt(dispatcher.bound_plan, "front end")
    values = hook_values(dispatcher.changes)
    return HandOver.of(dispatcher.bound_plan, dispatcher.config, receipt.active, values)


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
    current_platform.set_default(as_default(binding))
    with use_platform(binding.platform), use_bound_plan(binding.bound_plan):
        loaded = load_general(binding.bound_plan)
        load_extensions(binding.bound_plan, LOGITS_PROCESSOR)
    loaded += extension_outcomes(binding.bound_plan, LOGITS_PROCESSOR)
    receipt = make_receipt(binding.bound_plan, process, rank, loaded)
    refuse(active_differences(hand_over.active, receipt.active), receipt.name, receipt.inactive, loaded)
    config = hand_over.config(binding.bound_plan)
    return Bootstrapped(config, binding, (*binding.bound_plan.outcomes, *loaded)), receipt


def make_dispatcher(started: Bootstrapped, hand_over: HandOver, receipt: Receipt) -> Dispatcher:
    """The dispatcher of a process that has taken over. The platform's hooks run here, too, and have to come to the
    engine's configuration.

    Raises:
        PlanMismatch: they come to another one.
    """
    dispatcher = started.dispatcher()
    # Until the hooks run, configurations are the same in all processes; so are values that none of them changed.
    changed_here = hook_values(dispatcher.changes)
    before, after = values_before_hooks(dispatcher.changes), as_texts(flatten(dispatcher.vllm_config))
    paths = (*hand_over.hook_values, *changed_here)
    engine = {path: text for path in paths if (text := hand_over.hook_values.get(path, before.get(path))) is not None}
    here = {path: text for path in paths if (text := changed_here.get(path, after.get(path))) is not None}
    advice = (
        f"Every process runs the hooks of {dispatcher.platform_name} again, and they have to come to the same "
        "configuration in each: without random numbers, the time, or what only some processes have in their environment"
    )
    refuse(value_differences(engine, here), receipt.name, advice=advice)
    return dispatcher


def refuse(
    found: list[Difference],
    here: str,
    inactive: tuple[str, ...] = (),
    outcomes: list[Outcome] | None = None,
    advice: str = "Every process of an engine has to see the same distributions; install the same versions for both, "
    "and start again",
) -> None:
    """PlanMismatch where anything is different, with the differences side by side.

    Args:
        here: the name of this process.
        inactive: why plugins do not work here.
        outcomes: of what was loaded; those that failed have their traceback there.
        advice: what to do.
    """
    if not found:
        return
    reasons = "".join(f"\n  {reason}" for reason in inactive)
    raise PlanMismatch(
        f"{here} would not run what the engine runs:\n{side_by_side(found, 'engine', here)}{reasons}\n{advice}",
        outcomes=[outcome for outcome in outcomes or () if outcome.state == "failed"],
    )


def _name(process: str, rank: int | None) -> str:
    return process if rank is None else f"{process} {rank}"
