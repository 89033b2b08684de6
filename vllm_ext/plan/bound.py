"""A plan whose platform is chosen: what processes are given, and what they compare by its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from vllm_ext.contracts.groups import KINDS
from vllm_ext.plan.decisions import Decision
from vllm_ext.plan.options import options_hash
from vllm_ext.plan.outcomes import Outcome
from vllm_ext.plan.plan import Plan
from vllm_ext.plan.rules import value_of

_OVERRIDES = ("attention", "worker", "communicator", "custom_ops", "engine.logits_processors")
"""Parts of the settings that decide which code runs, besides the plugins."""


class BoundPlan(msgspec.Struct, frozen=True):
    """Immutable; made by :meth:`Plan.bind`."""

    plan: Plan
    platform: Decision | None
    outcomes: tuple[Outcome, ...]
    """Of the platform candidates, and of plugins that are left out: general ones with their platform, and what an
    engine has no use for."""
    versions: Mapping[str, str]
    """Of what the plan runs on, by name."""

    @property
    def platform_distribution(self) -> str:
        """The distribution that the platform comes from; empty where there is none."""
        return self.platform.distribution if self.platform else ""

    @property
    def foreign_distributions(self) -> frozenset[str]:
        """Distributions of all other platforms that are installed."""
        owners = {d.distribution for d in self.plan.decisions if d.kind == "platform"}
        return frozenset(owners - {self.platform_distribution, ""})

    def selected(self, kind: str) -> tuple[Decision, ...]:
        """Decisions to load, in order, without what is left out."""
        if kind == "platform":
            return (self.platform,) if self.platform else ()
        left_out = {outcome.key for outcome in self.outcomes if outcome.state == "passed_over"}
        return tuple(d for d in self.plan.selected(kind) if d.key not in left_out)

    used = selected
    """As of a plan; nothing is undecided here."""

    def leave_out(self, kind: str, why: str) -> BoundPlan:
        """The plan of an engine that has no use for a kind of plugins: none of it is loaded, in any process."""
        left_out = (Outcome(decision.key, "passed_over", why) for decision in self.selected(kind))
        return msgspec.structs.replace(self, outcomes=(*self.outcomes, *left_out))

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Options of everything that is used, by plugin name; the platform's win over those of its namesakes."""
        used = [decision for kind in KINDS for decision in self.selected(kind.key)]
        ordered = sorted(used, key=lambda decision: decision is self.platform)
        return {decision.name: options for decision in ordered if (options := self.plan.options_of(decision))}

    def identity(self) -> dict[str, Any]:
        """What has to be the same in every process of an engine, as plain values: no locations, nothing unused."""
        settings = self.plan.settings
        return {
            "plugins": [self._identity_of(decision) for kind in KINDS for decision in self.selected(kind.key)],
            "overrides": {name: msgspec.to_builtins(value_of(settings, name)) for name in _OVERRIDES},
            "versions": dict(self.versions),
        }

    def _identity_of(self, decision: Decision) -> list[str]:
        """One plugin: what it is, and a hash of its options."""
        options = options_hash(decision.record, self.plan.settings) if decision.record else ""
        return [decision.distribution, decision.version, decision.group, decision.name, decision.value, options]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of :meth:`identity`, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def left_out_with_platform(plan: Plan, platform: Decision | None, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    """Outcomes for general plugins of a distribution whose platform is not used, since another one is.

    One that the user named is not left out.
    """
    if platform is None:
        return
    passed_over = {outcome.key for outcome in outcomes if outcome.state == "passed_over"}
    unused: dict[str, str] = {}
    for decision in plan.decisions:
        is_unused = decision.key in passed_over or decision.status in ("available", "disabled")
        if decision.kind == "platform" and is_unused and not decision.in_tree:
            unused.setdefault(decision.distribution, decision.reference)
    unused.pop(platform.distribution, None)
    for decision in plan.selected("general"):
        if decision.distribution in unused and not decision.named:
            detail = (
                f"platform {unused[decision.distribution]!r} of its distribution is not used, {platform.reference!r} is"
            )
            yield Outcome(decision.key, "passed_over", detail)
