"""What is done before a vLLM starts: its platform is chosen, and its plugins are tried, each in its own process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from vllm_ext.contracts.groups import KINDS, LOGITSPROCS_GROUP, PLATFORM, is_read_by_vllm
from vllm_ext.errors import PluginLoadError
from vllm_ext.hosts.process_state import process_state_kept
from vllm_ext.hosts.variables import CPU_VARIABLES, host_variables, is_vllms_cpu
from vllm_ext.managers import bind_platform
from vllm_ext.managers.child import LoadReport
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.plan import BoundPlan, Decision, Outcome, Plan

Load = Callable[[Sequence[Decision]], Mapping[int, LoadReport]]
"""Loads plugins, each in a child process; reports by the ``id`` of their decision."""


class Prepared(NamedTuple):
    """The plan as it can be carried out, and how vLLM is told."""

    bound_plan: BoundPlan
    variables: dict[str, str]
    left_out: list[str]
    """Of plugins that were merely found and do not load, one sentence each."""


def prepare(plan: Plan, environ: Mapping[str, str], load: Load | None) -> Prepared:
    """Bind a plan whose host is vLLM, and say it in variables of vLLM.

    Effects: candidates for the platform are imported and called here, everything else by ``load``; without ``load``
    nothing else is tried. What a candidate changes in environment, current directory, signals and file mode mask is
    taken back: neither the trials nor a command that is started then are to depend on who was asked before.

    Raises:
        PlatformUnavailable, AmbiguousPlugin: as of :func:`bind_platform`; or no platform is left.
        PluginLoadError: a plugin that the user named does not load; or one that cannot be left out.
        ConfigError: vLLM has no way to be told.
    """
    plan.require_valid()
    with process_state_kept():
        if all(candidate.named and is_vllms_cpu(candidate) for candidate in plan.candidates()):
            # As it will be there: without it, a vLLM that was built for another device declines.
            os.environ |= CPU_VARIABLES
        bound_plan = bind_platform(plan).bound_plan
    # What cannot be said is not worth trying.
    variables = host_variables(bound_plan, environ)
    failed = [] if load is None else _failures(load(_to_be_tried(bound_plan)).values())
    if not failed:
        return Prepared(bound_plan, variables, [])
    if fatal := [report for report in failed if report.decision.named or not _can_be_left_out(report.decision)]:
        raise PluginLoadError(
            "; ".join(map(_failure, fatal)), plugin=fatal[0].decision.name, outcomes=[r.outcome for r in fatal]
        )
    out = [Outcome(r.decision.key, "passed_over", f"it failed when it was tried: {r.outcome.detail}") for r in failed]
    bound_plan = msgspec.structs.replace(bound_plan, outcomes=(*bound_plan.outcomes, *out))
    left_out = [f"{_failure(report)}; it is left out" for report in failed]
    return Prepared(bound_plan, host_variables(bound_plan, environ), left_out)


def _to_be_tried(bound_plan: BoundPlan) -> list[Decision]:
    """What vLLM will load, but for the platform, which has been called, and for what is part of that vLLM."""
    selected = [d for kind in KINDS if kind != PLATFORM for d in bound_plan.selected(kind.key)]
    return [d for d in selected if is_read_by_vllm(d.group) and not d.value.startswith("vllm.")]


def _failures(reports: Iterable[LoadReport]) -> list[LoadReport]:
    return [report for report in reports if report.outcome.state == "failed"]


def _can_be_left_out(decision: Decision) -> bool:
    return decision.group != LOGITSPROCS_GROUP


def _failure(report: LoadReport) -> str:
    decision = report.decision
    reason = f"{decision.reason}; " if decision.named else ""
    if not _can_be_left_out(decision):
        reason += "vLLM loads every logits processor that is installed, and ends when one fails; "
    reason += f"vllm-ext show {decision.name} --load --set host=vllm has all of it"
    return f"{source_of(decision)} failed: {report.outcome.detail} ({reason})"
