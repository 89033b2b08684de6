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
from vllm_ext.errors import ConfigError
from vllm_ext.managers.child import LoadReport, load_in_child
from vllm_ext.plan import Decision, Plan, get_decision


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
        decision = get_decision(plan, parsed_args.name, parsed_args.group)
        fields = record_fields(plan, decision)
        self._code = 0
        if parsed_args.load:
            if decision.why_not_loaded:
                raise ConfigError(f"{decision} {decision.why_not_loaded}")
            report = load_in_child(plan, decision)
            self._code = exit_code(report)
            fields |= load_fields(report)
        return tuple(fields), tuple(fields.values())

    def run(self, parsed_args: argparse.Namespace) -> int:
        super().run(parsed_args)
        return self._code


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
