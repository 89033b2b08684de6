"""``vllm-ext list``: what is installed, what is chosen, and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from vllm_ext.cli.base import ListCommand
from vllm_ext.contracts.groups import KIND_OF_GROUP
from vllm_ext.discovery import scan
from vllm_ext.errors import ConfigError, did_you_mean, listing
from vllm_ext.plan import Status, resolve

_COLUMNS = ("group", "name", "distribution", "version", "status", "reason")


class ListPlugins(ListCommand):
    """List plugins with their distribution, status and the reason for it. Runs no plugin code."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--group", help=f"only this entry-point group, such as {', '.join(KIND_OF_GROUP)}")
        parser.add_argument("--status", choices=get_args(Status), help="only plugins of this status")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        plan = resolve(scan(), self.load_config(parsed_args))
        groups = {*KIND_OF_GROUP, *(decision.group for decision in plan.decisions)} - {""}
        if parsed_args.group not in (None, *groups):
            raise ConfigError(
                f"command line (--group): no entry-point group {parsed_args.group!r}"
                f"{did_you_mean(parsed_args.group, groups)}; groups: {listing(groups)}"
            )
        self._plan = plan
        rows = [
            (d.group, d.name, d.distribution, d.version, d.status, d.reason)
            for d in plan.decisions
            if parsed_args.group in (None, d.group) and parsed_args.status in (None, d.status)
        ]
        return _COLUMNS, rows

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Print the rows; then say on stderr what the settings ask for in vain, which is the exit code."""
        super().run(parsed_args)
        for note in self._plan.notes:
            self.app.LOG.warning("%s", note)
        for error in self._plan.errors:
            self.app.LOG.error("%s", error)
        return max((error.exit_code for error in self._plan.errors), default=0)
