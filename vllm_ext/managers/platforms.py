"""The choice of the platform, made once: each candidate's callable is called once."""

from __future__ import annotations

import logging
import platform as python_platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from stevedore.extension import Extension

from vllm_ext._version import __version__
from vllm_ext.config import Settings
from vllm_ext.contracts.current_platform import probing, refuse_while_probing
from vllm_ext.contracts.groups import is_read_by_vllm
from vllm_ext.contracts.platform import Platform, UnspecifiedPlatform
from vllm_ext.contracts.platform_check import METHODS, check_platform, is_inherited
from vllm_ext.contracts.qualname import is_class_path
from vllm_ext.discovery import find_providers
from vllm_ext.errors import AmbiguousPlugin, ContractError, PlatformUnavailable, dotted_path
from vllm_ext.managers.host_contracts import is_for_vllm
from vllm_ext.managers.planned import NamedPlugins, PlannedDriver
from vllm_ext.managers.policy import is_first_report, report_once
from vllm_ext.plan import BoundPlan, Decision, Outcome, Plan
from vllm_ext.plan.names import in_yaml
from vllm_ext.plan.requirements import VLLM

logger = logging.getLogger(__name__)

_NAMEABLE = ("candidate", "available", "duplicate")
"""Status of platforms that a name in the settings may stand for."""


@dataclass(frozen=True, slots=True)
class PlatformBinding:
    """The bound plan, and an instance of the platform that it is bound to."""

    bound_plan: BoundPlan
    platform: Platform


class PlatformCandidate(NamedPlugins):
    """One candidate: its callable is called, and what it returns is made a platform."""

    def __init__(self, plan: Plan, decision: Decision) -> None:
        self.decision = decision
        self.warnings: list[str] = []
        """What may be a mistake in its class."""
        super().__init__(plan, [decision], namespace=decision.group, invoke_on_load=True)

    @property
    def outcome(self) -> Outcome:
        return self.outcomes[0]

    @property
    def is_active(self) -> bool:
        return self.outcome.state == "active"

    def use(self, decision: Decision, plugin: Any) -> Platform:
        platform: Platform = super().use(decision, plugin)()
        platform._chosen_as = decision.name, str(decision)
        if not is_for_vllm(decision, self.plan.settings.host):
            self.warnings = _check_platform(platform, decision, self.plan.settings)
        return platform

    def _load_one_plugin(self, *args: Any, **kwargs: Any) -> Extension[Any] | None:
        with probing(self.decision.name):
            return super()._load_one_plugin(*args, **kwargs)


class PlatformDriver(PlannedDriver):
    """Holds the candidate that won; its callable is not called again."""

    def __init__(self, candidate: PlatformCandidate) -> None:
        self._probed = candidate.extensions
        super().__init__(candidate.plan, candidate.decision)

    def _load_plugins(self, *args: Any, **kwargs: Any) -> list[Extension[Any]]:
        return self._probed

    @property
    def platform(self) -> Platform:
        # Not stevedore's ``driver``, which gives the plugin itself where the built object is falsy.
        return self._probed[0].obj  # type: ignore[return-value]


class _Choice(NamedTuple):
    winner: PlatformCandidate | None
    probed: list[PlatformCandidate]


def bind_platform(plan: Plan) -> PlatformBinding:
    """Probe the plan's candidates as ``platform.driver`` says, and bind the plan to the one that is chosen.

    Effects: imports and calls the entry points of candidates until the choice is made. Where ``auto`` finds none, the
    platform is an :class:`UnspecifiedPlatform`.

    Raises:
        PlatformUnavailable: a platform that the user named, or all of a list, declined or failed.
        AmbiguousPlugin: ``auto``, and several out-of-tree platforms can be used.
    """
    refuse_while_probing("for plugins to be loaded")
    candidates = plan.candidates()
    choose = _choose_auto if plan.settings.platform.driver == "auto" else _choose_listed
    winner, probed = choose(plan, candidates)
    _report(winner, probed)
    if winner is not None:
        report_once(winner.decision, winner.warnings)
    outcomes = [candidate.outcome for candidate in probed]
    if winner is not None:
        probed_keys = {outcome.key for outcome in outcomes}
        detail = f"not probed, since {winner.decision.name!r} is used"
        outcomes += [Outcome(d.key, "passed_over", detail) for d in candidates if d.key not in probed_keys]
    bound_plan = plan.bind(winner.decision if winner else None, outcomes, runtime_versions(plan.settings.host))
    return PlatformBinding(bound_plan, PlatformDriver(winner).platform if winner else UnspecifiedPlatform())


def activate_bound(bound_plan: BoundPlan) -> PlatformBinding:
    """Activate the platform that another process chose; nothing else is tried.

    Raises:
        PlatformUnavailable: it declines or fails here, or the plan has none.
    """
    refuse_while_probing("for plugins to be loaded")
    if bound_plan.platform is None:
        raise PlatformUnavailable("the plan that was handed over has no platform, so there is nothing to run on")
    candidate = PlatformCandidate(bound_plan.plan, bound_plan.platform)
    if not candidate.is_active:
        raise _unavailable([candidate])
    own = [outcome for outcome in bound_plan.outcomes if outcome.key != candidate.outcome.key]
    bound_plan = msgspec.structs.replace(bound_plan, outcomes=(candidate.outcome, *own))
    return PlatformBinding(bound_plan, PlatformDriver(candidate).platform)


def runtime_versions(host: str) -> dict[str, str]:
    """Versions of what a plan runs on; those of torch and of a vLLM are read from metadata, without importing them."""
    versions = {"vllm_ext": __version__, "python": python_platform.python_version(), "torch": _version_of("torch")}
    return versions | ({VLLM: _version_of(VLLM)} if host == VLLM else {})


def _version_of(module: str) -> str:
    provider = find_providers([module]).get(module)
    return provider.version if provider else "not installed"


def _choose_listed(plan: Plan, candidates: Sequence[Decision]) -> _Choice:
    """The first that activates; the list is the permission to go on to the next."""
    choice = _first_active(plan, candidates)
    if choice.winner is None:
        raise _unavailable(choice.probed)
    return choice


def _choose_auto(plan: Plan, candidates: Sequence[Decision]) -> _Choice:
    """The one out-of-tree platform that activates, else the first in-tree one."""
    probed = [PlatformCandidate(plan, decision) for decision in candidates if not decision.in_tree]
    if failed := [c for c in probed if c.outcome.state == "failed" and c.decision.named]:
        raise _unavailable(failed)
    active = [candidate for candidate in probed if candidate.is_active]
    if len(active) > 1:
        raise _several_active(active, probed)
    if active:
        return _Choice(active[0], probed)
    in_tree = _first_active(plan, [decision for decision in candidates if decision.in_tree])
    return _Choice(in_tree.winner, probed + in_tree.probed)


def _first_active(plan: Plan, candidates: Iterable[Decision]) -> _Choice:
    probed: list[PlatformCandidate] = []
    for decision in candidates:
        probed.append(PlatformCandidate(plan, decision))
        if probed[-1].is_active:
            return _Choice(probed[-1], probed)
    return _Choice(None, probed)


def _report(winner: PlatformCandidate | None, probed: Sequence[PlatformCandidate]) -> None:
    """Warn of what the user named and is not used, and once in a process of what was merely found and failed."""
    instead = f"platform {winner.decision} is used instead" if winner else "no platform is left"
    for candidate in probed:
        outcome, decision = candidate.outcome, candidate.decision
        if candidate.is_active:
            continue
        if decision.named or (outcome.state == "failed" and is_first_report(decision)):
            logger.warning("platform plugin %s %s: %s; %s", decision, _verb(outcome), outcome.detail, instead)


def _unavailable(probed: Sequence[PlatformCandidate]) -> PlatformUnavailable:
    """The error where nothing of what the user named activated; a failure is its cause."""
    first = probed[0].decision
    named = f"{first.reason} ({first.origin})"
    tried = "; ".join(f"{c.decision} {_verb(c.outcome)}: {c.outcome.detail}" for c in probed)
    if len(probed) == 1:
        text = f"platform plugin {tried}; it is {named}, so nothing else is tried. "
        permitted = f"{_reference(first, probed[0].plan)}, {_cpu_reference(probed[0].plan)}"
        text += f"A list permits that: platform: {{driver: [{permitted}]}}"
    else:
        text = f"none of the platform plugins {named} can be used: {tried}"
    error = PlatformUnavailable(text, plugin=first.name, outcomes=[c.outcome for c in probed])
    error.__cause__ = next((c.outcome.error for c in probed if c.outcome.state == "failed"), None)
    return error


def _several_active(active: Sequence[PlatformCandidate], probed: Sequence[PlatformCandidate]) -> AmbiguousPlugin:
    decisions = [candidate.decision for candidate in active]
    lines = "\nor\n".join(f"  platform: {{driver: {_reference(c.decision, c.plan)}}}" for c in active)
    return AmbiguousPlugin(
        f"{len(active)} out-of-tree platforms can be used here: {', '.join(map(str, decisions))}. "
        f"Choose one in the settings file:\n{lines}",
        outcomes=[candidate.outcome for candidate in probed],
    )


def _reference(decision: Decision, plan: Plan) -> str:
    """How the settings file names this platform and no other."""
    namesakes = [d for d in plan.find("platform", decision.name) if _is_nameable(d, plan)]
    is_unique = len(namesakes) == 1 and decision.name != "auto"
    return in_yaml(decision.name if is_unique else decision.reference)


def _cpu_reference(plan: Plan) -> str:
    found = (d for d in plan.find("platform", "cpu") if d.in_tree and _is_nameable(d, plan))
    return next((_reference(decision, plan) for decision in found), "cpu")


def _is_nameable(decision: Decision, plan: Plan) -> bool:
    return decision.status in _NAMEABLE and (plan.settings.host != VLLM or is_read_by_vllm(decision.group))


def _verb(outcome: Outcome) -> str:
    return "declined" if outcome.state == "unavailable" else "failed"


def _check_platform(platform: Platform, decision: Decision, settings: Settings) -> list[str]:
    """What may be wrong with the platform; ContractError, with all of it, where it is of no use."""
    problems = check_platform(platform, [name for name in METHODS if not _is_made_up_for(name, platform, settings)])
    if problems.errors:
        cls = type(platform)
        raise ContractError(
            f"platform plugin {decision}: {dotted_path(cls)} {'. It '.join(problems.errors)}",
            plugin=decision.name,
        )
    return problems.warnings


def _is_made_up_for(method: str, platform: Platform, settings: Settings) -> bool:
    """Whether the platform can do without a method: what it would choose is chosen."""
    if method == "check_and_update_config":
        return settings.worker.cls != "auto" or not is_inherited(platform, "apply_config_platform_defaults")
    return method == "get_attn_backend_cls" and is_class_path(settings.attention.backend)
