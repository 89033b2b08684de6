"""``vllm-ext plan``: the decisions as data."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_ext.cli.base import ShowCommand, output_to_stderr, report_problems
from vllm_ext.config import redacted_settings
from vllm_ext.dispatch.planning import plan_installed
from vllm_ext.plan import plan_to_dict


class ShowPlan(ShowCommand):
    """Print the plan as JSON: every decision with its reason, the settings, and what is wrong with them.

    Runs no plugin code without --bind.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--bind",
            action="store_true",
            help="choose the platform, which runs the entry points of candidates; adds outcomes and the fingerprint",
        )
        return parser

    @property
    def formatter_default(self) -> str:
        return "json"

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._plan = plan_installed(self.load_config(parsed_args))
        super().run(parsed_args)
        return report_problems(self.app, self._plan)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        if parsed_args.bind:
            from vllm_ext.managers import bind_platform

            self._plan.require_valid()
            with output_to_stderr(self.app.stdout):
                bound_plan = bind_platform(self._plan).bound_plan
            values = plan_to_dict(bound_plan)
            values |= {"plan": values["plan"] | {"settings": redacted_settings(self._plan.settings)}}
        else:
            values = plan_to_dict(self._plan) | {"settings": redacted_settings(self._plan.settings)}
        return tuple(values), tuple(values.values())
