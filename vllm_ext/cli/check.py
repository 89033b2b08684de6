"""``vllm-ext check NAME``: does a plugin fit what is installed, does it load alone, does it compute the right thing."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vllm_ext.check.conformance import NAME as CONFORMANCE
from vllm_ext.check.conformance import conformance_row
from vllm_ext.check.import_rows import check_folder, import_rows
from vllm_ext.check.load_rows import LOAD, REGISTERED, TWICE, load_row, rows_after_load, skipped_rows
from vllm_ext.check.metadata import metadata_rows
from vllm_ext.check.rows import Row
from vllm_ext.cli.base import ListCommand, ends_on_signals
from vllm_ext.cli.list import check_group
from vllm_ext.cli.loading import exit_code
from vllm_ext.config import Config
from vllm_ext.dispatch.planning import plan_installed
from vllm_ext.errors import PluginNotFound
from vllm_ext.managers.child import load_in_child
from vllm_ext.plan import Decision, Plan, get_decision

_COLUMNS = ("check", "result", "detail")


class Check(ListCommand):
    """Check one plugin: its metadata, its imports, whether it loads, twice too, what it registers and what it computes.

    The imports are looked up by a static scan, which runs nothing: it sees names that are gone, and not that a
    function takes other arguments. The rest runs the plugin, in processes of its own with the time limit
    probe.timeout_s. The exit code is 1 where a check failed, 3 where a platform that was named does not load.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="NAME", help="a plugin's name, or distribution:name")
        parser.add_argument("--group", help="its entry-point group, where several have the name")
        parser.add_argument(
            "--against",
            metavar="DIR",
            help="folder with the vllm/ in which imports of it are looked up, such as a checkout or a site-packages "
            "(the vLLM that is installed)",
        )
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Print; the exit code is that of what failed, or of what the settings ask for in vain."""
        self._code = 0
        super().run(parsed_args)
        for error in self._plan.errors:
            self.app.LOG.error("%s", error)
        return max((error.exit_code for error in self._plan.errors), default=self._code)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        config = self.load_config(parsed_args)
        against = None if parsed_args.against is None else check_folder(parsed_args.against)
        self._plan = plan = plan_installed(config)
        check_group(plan, parsed_args.group)
        decision = get_decision(plan, parsed_args.name, parsed_args.group)
        if decision.record is None:
            raise PluginNotFound(
                f"no plugin {parsed_args.name!r} is installed; {decision.reason}", plugin=decision.name
            )
        rows = []
        with ends_on_signals():
            for row in self._rows(config, plan, decision, against):
                rows.append(row._replace(detail=self.app.without_secrets(row.detail)))
                # Some take their time.
                self.app.LOG.info("%s: %s: %s", *row)
        if any(row.result == "fail" for row in rows):
            self._code = self._code or 1
        return _COLUMNS, rows

    def _rows(self, config: Config, plan: Plan, decision: Decision, against: str | None) -> Iterator[Row]:
        yield from metadata_rows(decision, against)
        if decision.kind is None or decision.status in ("invalid", "shadowed"):
            checks = ("imports", LOAD, TWICE, REGISTERED, CONFORMANCE)
            yield from skipped_rows(checks, f"it cannot be used, since it is {decision.status}")
            return
        yield from import_rows(decision, against)
        if decision.why_not_loaded:
            yield from skipped_rows((LOAD, TWICE, REGISTERED, CONFORMANCE), f"it {decision.why_not_loaded}")
            return
        report = load_in_child(plan, decision, again=True)
        self._code = exit_code(report)
        yield load_row(report)
        if report.outcome.state != "active":
            yield from skipped_rows((TWICE, REGISTERED, CONFORMANCE), "did not load")
            return
        yield from rows_after_load(report)
        yield conformance_row(config, plan, decision)
