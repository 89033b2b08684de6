"""What a process is handed when it joins an engine, and how it finds out whether it would run the same.

The plan is the engine's; what is installed is the process's own. Comparing the two is a pure function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from vllm_ext.config import Config, Origin
from vllm_ext.discovery import ExtensionRecord
from vllm_ext.errors import one_line
from vllm_ext.plan.bound import BoundPlan
from vllm_ext.plan.decisions import Decision
from vllm_ext.plan.serial import bound_plan_from_content, plan_to_dict

_NOT_INSTALLED = "not installed"
_NOT_SET = "not set"


class HandOver(msgspec.Struct, frozen=True):
    """Everything that a process needs to apply an engine's plan; plain data."""

    plan: dict[str, Any]
    """The bound plan, as :func:`plan_to_dict` gives it."""
    identity: dict[str, Any]
    """:meth:`BoundPlan.identity` in the process that made the plan."""
    active: tuple[str, ...]
    """The plugins that work there, as in its :class:`Receipt`."""
    origins: dict[str, Origin] = {}
    """Where each value of the settings comes from."""
    allow_list: tuple[str, ...] | None = None
    safe_mode: bool = False
    hook_values: dict[str, str] = {}
    """What the platform's hooks put into the configuration there: texts by path."""

    @classmethod
    def of(
        cls, bound_plan: BoundPlan, config: Config, active: Iterable[str], hook_values: Mapping[str, str]
    ) -> HandOver:
        """What to hand to the processes of an engine with this plan, these settings, and these results of hooks."""
        return cls(
            plan_to_dict(bound_plan),
            bound_plan.identity(),
            tuple(active),
            dict(config.origins),
            config.allow_list,
            config.safe_mode,
            dict(hook_values),
        )

    @property
    def fingerprint(self) -> str:
        return str(self.plan["fingerprint"])

    def bound_plan(self) -> BoundPlan:
        """The plan as it was made; ValueError where it is not one that this vllm_ext can read."""
        return bound_plan_from_content(self.plan)

    def config(self, bound_plan: BoundPlan) -> Config:
        """The settings that belong to it."""
        return Config(bound_plan.plan.settings, self.origins, self.allow_list, self.safe_mode)


class Difference(NamedTuple):
    """One thing that is not the same in two processes."""

    what: str
    engine: str
    here: str


def found_here(
    bound_plan: BoundPlan, records: Iterable[ExtensionRecord], versions: Mapping[str, str]
) -> tuple[BoundPlan, list[Decision]]:
    """The plan with what this process finds in place of what its maker found.

    Args:
        records: what is installed here.
        versions: of what runs here, by name.

    Returns: the plan, and those of its decisions to load that nothing here provides; they are as they were.
    """
    at = {(record.distribution, record.group, record.name): record for record in records if not record.shadowed_by}
    missing: list[Decision] = []

    def here(decision: Decision) -> Decision:
        record = at.get((decision.distribution, decision.group, decision.name))
        if record is None and decision.is_used:
            missing.append(decision)
        return decision if record is None else msgspec.structs.replace(decision, record=record)

    used = {d.key: here(d) for d in (*bound_plan.plan.decisions, bound_plan.platform) if d is not None and d.is_used}
    platform = used[bound_plan.platform.key] if bound_plan.platform else None
    if platform is not None:
        # Of the candidates only the one that was chosen matters here.
        missing = [d for d in missing if d.kind != "platform" or d.key == platform.key]
    decisions = tuple(used.get(decision.key, decision) for decision in bound_plan.plan.decisions)
    plan = msgspec.structs.replace(bound_plan.plan, decisions=decisions)
    return msgspec.structs.replace(bound_plan, plan=plan, platform=platform, versions=dict(versions)), missing


def differences(engine: Mapping[str, Any], here: BoundPlan, missing: Iterable[Decision]) -> list[Difference]:
    """What a process would run otherwise than its engine, in the engine's order.

    Args:
        engine: :meth:`BoundPlan.identity` of the engine.
        here, missing: what :func:`found_here` gave.
    """
    own = here.identity()
    found = [
        Difference(name, str(engine["versions"].get(name, "not known")), str(own["versions"].get(name, "not known")))
        for name in dict.fromkeys((*engine["versions"], *own["versions"]))
        if engine["versions"].get(name) != own["versions"].get(name)
    ]
    for slot, value in engine["overrides"].items():
        if value != own["overrides"].get(slot):
            found.append(Difference(f"setting {slot}", repr(value), repr(own["overrides"].get(slot))))
    return found + _plugin_differences(engine["plugins"], own["plugins"], {d.key for d in missing})


def _plugin_differences(
    engine: list[list[str]], own: list[list[str]], missing: set[tuple[str, ...]]
) -> list[Difference]:
    ours = {(distribution, group, name): rest for distribution, _, group, name, *rest in own}
    versions = {(distribution, group, name): version for distribution, version, group, name, *_ in own}
    found = []
    for distribution, version, group, name, value, options in engine:
        what, key = f"{group}: {distribution}:{name}", (distribution, group, name)
        if key not in ours or (distribution, group, name, value) in missing:
            found.append(Difference(what, f"version {version}", _NOT_INSTALLED))
            continue
        here_value, here_options = ours[key]
        if version != versions[key]:
            found.append(Difference(what, f"version {version}", f"version {versions[key]}"))
        if value != here_value:
            found.append(Difference(what, value, here_value))
        if options != here_options:
            found.append(Difference(what, f"options {_short(options)}", f"options {_short(here_options)}"))
    return found


def _short(options_hash: str) -> str:
    """Options may hold secrets, so what is shown of them is a part of their hash."""
    return f"(hash {options_hash[:12]})" if options_hash else "none"


def active_differences(engine: Iterable[str], here: Iterable[str]) -> list[Difference]:
    """Plugins that worked in one of two processes only."""
    ours, theirs = list(here), list(engine)
    return [Difference(name, "active", "not active") for name in theirs if name not in ours] + [
        Difference(name, "not active", "active") for name in ours if name not in theirs
    ]


def value_differences(engine: Mapping[str, str], here: Mapping[str, str]) -> list[Difference]:
    """Values of the configuration that are not the same in two processes, given as texts by path."""
    paths = dict.fromkeys((*engine, *here))
    values = ((path, engine.get(path, _NOT_SET), here.get(path, _NOT_SET)) for path in paths)
    return [Difference(path, one_line(one), one_line(other)) for path, one, other in values if one != other]


def side_by_side(differences: Iterable[Difference], engine: str, here: str) -> str:
    """The differences as a table of three columns, headed by the names of the two processes."""
    rows = [Difference("", engine, here), *differences]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {row.what:<{widths[0]}}  {row.engine:<{widths[1]}}  {row.here}".rstrip() for row in rows)
