"""The plan: one decision per record, and what is wrong with the names in the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from vllm_ext.config import Settings
from vllm_ext.errors import VllmExtError
from vllm_ext.plan.decisions import Decision
from vllm_ext.plan.names import matches
from vllm_ext.plan.options import options_of
from vllm_ext.plan.outcomes import Outcome

if TYPE_CHECKING:
    from vllm_ext.plan.bound import BoundPlan


class Plan(msgspec.Struct, frozen=True):
    """Immutable; made by :func:`resolve`."""

    decisions: tuple[Decision, ...]
    """Kind by kind; within one, what is used in its order of use, then the rest by distribution and name."""
    settings: Settings
    errors: tuple[VllmExtError, ...] = ()
    """Names in the settings that cannot be followed; such a plan must not be carried out."""
    notes: tuple[str, ...] = ()
    """What a user should know although nothing is wrong; one sentence each."""

    def selected(self, kind: str) -> tuple[Decision, ...]:
        """Decisions to load, in order."""
        return tuple(d for d in self.decisions if d.kind == kind and d.status == "selected")

    def used(self, kind: str) -> tuple[Decision, ...]:
        """Decisions that are carried out, in order: those selected, or of platforms the candidates."""
        return tuple(d for d in self.decisions if d.kind == kind and d.is_used)

    def candidates(self) -> tuple[Decision, ...]:
        """Platforms to probe, in order."""
        return tuple(d for d in self.decisions if d.kind == "platform" and d.status == "candidate")

    def options_of(self, decision: Decision) -> dict[str, Any]:
        """The options that the settings give for the plugin, a copy."""
        return options_of(decision.record, self.settings) if decision.record else {}

    def find(self, kind: str | None, reference: str) -> tuple[Decision, ...]:
        """All decisions on what ``name`` or ``distribution:name`` stands for; of any kind where that is ``None``."""
        return tuple(
            decision
            for decision in self.decisions
            if kind in (None, decision.kind)
            and (matches(reference, decision.record) if decision.record else decision.name == reference)
        )

    def require_valid(self) -> None:
        """Raise if the plan has errors: of the class with the highest exit code, with the texts of all."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            worst = max(self.errors, key=lambda error: error.exit_code)
            raise type(worst)("\n".join(str(error) for error in self.errors))

    def bind(
        self, platform: Decision | None, outcomes: Sequence[Outcome] = (), versions: Mapping[str, str] | None = None
    ) -> BoundPlan:
        """Fix the platform that was chosen.

        Args:
            platform: one of :meth:`candidates`, or ``None`` where none activated.
            outcomes: what became of the candidates.
            versions: versions of what the plan runs on, by name.
        """
        # A bound plan holds its plan, so its module comes after this one.
        from vllm_ext.plan.bound import BoundPlan, left_out_with_platform

        left_out = left_out_with_platform(self, platform, outcomes)
        return BoundPlan(self, platform, (*outcomes, *left_out), versions or {})
