"""``vllm-ext list``: what is installed, what is chosen, and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from vllm_ext.cli.base import ListCommand, report_problems
from vllm_ext.cli.loading import exit_code, load_reports, outcome_columns
from vllm_ext.contracts.groups import ENTRY_POINT_GROUPS, KIND_OF_GROUP
from vllm_ext.dispatch.planning import plan_installed
from vllm_ext.errors import ConfigError, did_you_mean, listing, printable
from vllm_ext.plan import Decision, Plan, Status

_COLUMNS = ("group", "name", "distribution", "version", "status", "reason")


class ListPlugins(ListCommand):
    """List plugins with their distribution, status and the reason for it. Runs no plugin code without --load."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--group", help=f"only this entry-point group, such as {', '.join(ENTRY_POINT_GROUPS)}")
        parser.add_argument("--status", choices=get_args(Status), help="only plugins of this status")
        parser.add_argument(
            "--load",
            action="store_true",
            help="load each plugin that is selected, or a candidate, in a process of its own; adds what became of it",
        )
        parser.add_argument(
            "--requirements",
            action="store_true",
            help="print the distributions of what is selected, as lines for a requirements file",
        )
        # So that it is known whether one was given.
        parser.set_defaults(formatter=None)
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Print; then say on stderr what the settings ask for in vain, which is the exit code."""
        if parsed_args.requirements:
            _check_alone(parsed_args)
        parsed_args.formatter = parsed_args.formatter or self.formatter_default
        self._plan = plan_installed(self.load_config(parsed_args))
        self._code = 0
        check_group(self._plan, parsed_args.group)
        if parsed_args.requirements:
            self.app.stdout.write("".join(f"{line}\n" for line in requirements(self._filtered(parsed_args))))
        else:
            super().run(parsed_args)
        return report_problems(self.app, self._plan) or self._code

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        decisions = self._filtered(parsed_args)
        rows = [(d.group, d.name, d.distribution, d.version, d.status, d.reason) for d in decisions]
        if not parsed_args.load:
            return _COLUMNS, rows
        reports = load_reports(self.app, self._plan, [decision for decision in decisions if decision.is_used])
        self._code = max(map(exit_code, reports.values()), default=0)
        added = [outcome_columns(reports.get(id(decision))) for decision in decisions]
        return (*_COLUMNS, "outcome", "seconds", "detail"), [
            (*row, *more) for row, more in zip(rows, added, strict=True)
        ]

    def _filtered(self, parsed_args: argparse.Namespace) -> list[Decision]:
        return [
            decision
            for decision in self._plan.decisions
            if parsed_args.group in (None, decision.group) and parsed_args.status in (None, decision.status)
        ]


def _check_alone(parsed_args: argparse.Namespace) -> None:
    """ConfigError for an option that says nothing about the lines of ``--requirements``."""
    others = {
        "--load": parsed_args.load,
        "-f/--format": parsed_args.formatter,
        "-c/--column": parsed_args.columns,
        "--sort-column": parsed_args.sort_columns,
    }
    if given := [option for option, value in others.items() if value]:
        raise ConfigError(
            f"command line: --requirements and {', '.join(given)} cannot be given together, since what it prints are "
            f"lines and no columns; leave out {' and '.join(given)}, or --requirements"
        )


def requirements(decisions: Iterable[Decision]) -> list[str]:
    """``distribution==version`` for each distribution that something used comes from, sorted."""
    used = {(d.distribution, d.version, d.record.editable) for d in decisions if d.is_used and d.record}
    return [_requirement(*which) for which in sorted(used)]


def _requirement(distribution: str, version: str, is_editable: bool) -> str:
    line = f"{distribution}=={version}" if version else distribution
    return printable(f"{line}  # editable here" if is_editable else line)


def check_group(plan: Plan, group: str | None) -> None:
    """ConfigError for a group that neither we nor anything installed has."""
    groups = {*KIND_OF_GROUP, *(decision.group for decision in plan.decisions)} - {""}
    if group is not None and group not in groups:
        raise ConfigError(
            f"command line (--group): no entry-point group {group!r}{did_you_mean(group, groups)}; "
            f"groups: {listing(groups)}"
        )
