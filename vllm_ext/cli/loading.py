"""What the commands with ``--load`` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cliff.app import App

    from vllm_ext.managers.child import LoadReport
    from vllm_ext.plan import Decision, Plan


def load_reports(app: App, plan: Plan, decisions: Sequence[Decision]) -> dict[int, LoadReport]:
    """Load the plugins in child processes; reports by the ``id`` of their decision. On a terminal a bar shows it."""
    from tqdm import tqdm

    from vllm_ext.managers.child import load_all_in_children

    with tqdm(
        total=len(decisions),
        desc="loading plugins",
        unit="",
        file=app.stderr,
        leave=False,
        disable=not app.stderr.isatty(),
    ) as bar:
        reports = load_all_in_children(plan, decisions, bar.update)
    return {id(report.decision): report for report in reports}


def outcome_columns(report: LoadReport | None) -> tuple[Any, ...]:
    """Outcome, seconds and detail; empty where the plugin was not loaded."""
    if report is None:
        return "", None, ""
    outcome = report.outcome
    detail = "; ".join(part for part in (outcome.detail, *report.effects) if part)
    return outcome.state, round(outcome.seconds, 3), detail


def exit_code(report: LoadReport) -> int:
    """0 for a plugin that works, or that may decline; 3 for a platform that was named and does not, 1 for any other."""
    state, decision = report.outcome.state, report.decision
    if state == "active" or (state == "unavailable" and not decision.named):
        return 0
    return 3 if decision.kind == "platform" and decision.named else 1
