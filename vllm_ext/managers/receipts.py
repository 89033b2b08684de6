"""What this process can prove about itself: which plugins of a plan it runs."""

from __future__ import annotations

import os
from collections.abc import Iterable

from vllm_ext.contracts.groups import GENERAL, LOGITS_PROCESSOR, PLATFORM
from vllm_ext.managers.general import active_general
from vllm_ext.managers.load import extension_outcomes
from vllm_ext.plan import BoundPlan, Outcome, Receipt, label_of

_KINDS = (PLATFORM, GENERAL, LOGITS_PROCESSOR)
"""What every process of an engine loads."""


class _Fork:
    parent: int | None = None

    @classmethod
    def note(cls) -> None:
        cls.parent = os.getppid()


os.register_at_fork(after_in_child=_Fork.note)


def make_receipt(
    bound_plan: BoundPlan, process: str, rank: int | None = None, loaded: Iterable[Outcome] = ()
) -> Receipt:
    """The receipt of this process for a plan that it has applied.

    A forked child has its parent's plugins, and a receipt of its own that says so.

    Args:
        process: what it is in its engine.
        rank: of a worker.
        loaded: what became of the general plugins, where they were loaded just now: why some do not work.
    """
    decisions = [decision for kind in _KINDS for decision in bound_plan.selected(kind.key)]
    now = (*loaded, *active_general(bound_plan), *extension_outcomes(bound_plan, LOGITS_PROCESSOR))
    outcomes = {outcome.key: outcome for outcome in (*bound_plan.outcomes, *now)}
    states = [(label_of(decision), outcomes.get(decision.key)) for decision in decisions]
    return Receipt(
        process,
        os.getpid(),
        bound_plan.fingerprint,
        rank,
        active=tuple(label for label, outcome in states if outcome and outcome.state == "active"),
        inactive=tuple(
            f"{label}: {outcome.detail if outcome else 'it did not work'}"
            for label, outcome in states
            if outcome is None or outcome.state != "active"
        ),
        seconds=sum(outcome.seconds for _, outcome in states if outcome),
        forked_from=_Fork.parent,
    )
