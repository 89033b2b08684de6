"""``vllm-ext show NAME``: all that is known of one plugin."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_ext.cli.base import ShowCommand
from vllm_ext.cli.list import check_group
from vllm_ext.cli.loading import exit_code
from vllm_ext.config.redaction import redact
from vllm_ext.dispatch.planning import plan_installed
from vllm_ext.errors import AmbiguousPlugin, ConfigError, PluginNotFound, did_you_mean, listing
from vllm_ext.managers.child import LoadReport, load_in_child
from vllm_ext.plan import Decision, Plan

NOT_TO_BE_LOADED = ("disabled", "incompatible", "shadowed", "invalid", "missing", "unknown")
"""Statuses of plugins that are not imported, whoever asks."""


class ShowPlugin(ShowCommand):
    """Show one plugin in full: its record, what is decided on it, and with --load what becomes of it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="NAME", help="a plugin's name, or distribution:name")
        parser.add_argument("--group", help="its entry-point group, where several have the name")
        parser.add_argument(
            "--load", action="store_true", help="load it in a process of its own; adds outcome, output and traceback"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        plan = plan_installed(self.load_config(parsed_args))
        check_group(plan, parsed_args.group)
        decision = find_one(plan, parsed_args.name, parsed_args.group)
        fields = record_fields(plan, decision)
        self._code = 0
        if parsed_args.load:
            if decision.status in NOT_TO_BE_LOADED:
                raise ConfigError(f"{decision} is not loaded, since it is {decision.status}: {decision.reason}")
            report = load_in_child(plan, decision)
            self._code = exit_code(report)
            fields |= load_fields(report)
        return tuple(fields), tuple(fields.values())

    def run(self, parsed_args: argparse.Namespace) -> int:
        super().run(parsed_args)
        return self._code


def find_one(plan: Plan, reference: str, group: str | None) -> Decision:
    """The one decision on a name.

    Raises:
        PluginNotFound: nothing has the name. AmbiguousPlugin: several have it.
    """
    found = [decision for decision in plan.find(None, reference) if group in (None, decision.group)]
    if not found:
        names = {d.name for d in plan.decisions if d.record and group in (None, d.group)}
        where = f" in group {group!r}" if group else ""
        elsewhere = "".join(f". It is in group {other.group!r}" for other in plan.find(None, reference))
        raise PluginNotFound(
            f"no plugin {reference!r} is installed{where}{did_you_mean(reference, names)}; installed: {listing(names)}"
            f"{elsewhere}",
            plugin=reference,
        )
    # A hidden copy, or a name that two settings ask for in vain, is no rival.
    found = [decision for decision in found if decision.status not in ("shadowed", "missing")] or found[:1]
    if len(found) > 1:
        lines = "".join(f"\n  {d.group}: {d.distribution}:{d.name} ({d.value}, {d.status})" for d in found)
        raise AmbiguousPlugin(
            f"{len(found)} plugins have the name {reference!r}; tell them apart by --group, or as "
            f"distribution:name:{lines}",
            plugin=reference,
        )
    return found[0]


def record_fields(plan: Plan, decision: Decision) -> dict[str, Any]:
    """What is declared, and what is decided."""
    record = decision.record
    return {
        "name": decision.name,
        "group": decision.group,
        "kind": decision.kind or "",
        "value": decision.value,
        "distribution": decision.distribution,
        "version": decision.version,
        "location": decision.location,
        "editable": bool(record and record.editable),
        "requires": list(record.requires) if record else [],
        "status": decision.status,
        "reason": decision.reason,
        "origin": str(decision.origin) if decision.origin else "",
        "named": decision.named,
        "notes": [*decision.notes, *_hidden_copies(plan, decision)],
        "options": redact(("options", decision.name), plan.options_of(decision)),
    }


def _hidden_copies(plan: Plan, decision: Decision) -> list[str]:
    copies = [d for d in plan.decisions if d.status == "shadowed" and d.key[:3] == decision.key[:3] and d != decision]
    return [
        f"{copy.location} declares it as well, and is hidden by {copy.record.shadowed_by}"
        for copy in copies
        if copy.record
    ]


def load_fields(report: LoadReport) -> dict[str, Any]:
    """What became of it in a child process."""
    outcome = report.outcome
    return {
        "outcome": outcome.state,
        "detail": outcome.detail,
        "seconds": round(outcome.seconds, 3),
        "call_seconds": round(outcome.call_seconds, 3),
        "imports_torch": report.imports_torch,
        "effects": list(report.effects),
        "output": report.output,
        "traceback": outcome.traceback or "",
    }
