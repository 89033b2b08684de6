"""``vllm-ext doctor``: what is wrong with this installation, and what to do about it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_ext.check.doctor import (
    NOT_TIMED,
    by_severity,
    examine_environment,
    examine_loads,
    examine_plan,
    examine_settings_error,
    without_repetitions,
)
from vllm_ext.cli.base import ListCommand
from vllm_ext.cli.loading import load_reports
from vllm_ext.config import Config, Settings
from vllm_ext.config.environment import read_allow_list, read_safe_mode
from vllm_ext.discovery import Finding, examine
from vllm_ext.dispatch.planning import plan_installed
from vllm_ext.errors import ConfigError

_COLUMNS = ("severity", "subject", "finding", "remedy")


class Doctor(ListCommand):
    """List what looks wrong with the installation, its metadata and settings. Runs no plugin code without --time.

    The exit code is 1 where there is an error or a warning, 0 where there are only notes.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--time",
            action="store_true",
            help="load each plugin that is used in a process of its own; adds the seconds that each takes",
        )
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._findings: list[Finding] = []
        super().run(parsed_args)
        if not self._findings and parsed_args.formatter == "table":
            self.app.stdout.write("Nothing looks wrong.\n")
        return 1 if any(finding.severity != "note" for finding in self._findings) else 0

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        findings: list[Finding] = [*examine_environment(os.environ)]
        is_certain = True
        try:
            config = self.load_config(parsed_args)
        except ConfigError as error:
            is_certain = False
            findings += examine_settings_error(error)
            config = Config(Settings(), {}, read_allow_list(os.environ), read_safe_mode(os.environ, []))
        plan = plan_installed(config)
        findings += [*without_repetitions(examine(), plan), *examine_plan(plan)]
        times: list[tuple[Any, ...]] = []
        if parsed_args.time and not is_certain:
            findings.append(NOT_TIMED)
        elif parsed_args.time:
            reports = list(load_reports(self.app, plan, [d for d in plan.decisions if d.is_used]).values())
            findings += examine_loads(reports)
            reports.sort(key=lambda report: -report.outcome.seconds)
            times = [_time_row(report) for report in reports]
        self._findings = by_severity(findings)
        rows = [(f.severity, f.subject, f.text, f.remedy) for f in self._findings]
        if not parsed_args.time:
            return _COLUMNS, rows
        return (*_COLUMNS, "seconds"), [*((*row, None) for row in rows), *times]


def _time_row(report: Any) -> tuple[Any, ...]:
    outcome, decision = report.outcome, report.decision
    text = f"{outcome.state}; {outcome.seconds - outcome.call_seconds:.3f} s to import"
    text += f", {outcome.call_seconds:.3f} s to call" + (", torch among it" if report.imports_torch else "")
    return "time", decision.reference, text, "", round(outcome.seconds, 3)
