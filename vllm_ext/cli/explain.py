"""``vllm-ext explain [SLOT]``: why this platform, this worker, these ops."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_ext.cli.base import ListCommand, output_to_stderr
from vllm_ext.config import Config
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.planning import make_plan
from vllm_ext.dispatch.trail import SLOTS, Step, dispatch_trail, plugin_trail
from vllm_ext.errors import PluginError, VllmExtError

_COLUMNS = tuple(name for name in Step._fields if name != "error")


class Explain(ListCommand):
    """Show what was decided on platform, general plugins, worker, attention, communicator and ops, and why.

    Also what the platform's hooks changed in the configuration.

    Chooses the platform and runs general plugins, as an engine does; loads no weights.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("slot", nargs="?", choices=SLOTS, metavar="SLOT", help=f"only this: {', '.join(SLOTS)}")
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._error: VllmExtError | None = None
        self._code = 0
        super().run(parsed_args)
        if self._error is not None:
            raise self._error
        return self._code

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        config = self.load_config(parsed_args)
        # What plugins print is no result: stdout is for the rows alone.
        with output_to_stderr(self.app.stdout):
            steps = self._steps(config, parsed_args.slot)
        shown = [step for step in steps if parsed_args.slot in (None, step.slot)]
        self._code = max((step.error.exit_code for step in shown if step.error), default=0)
        return _COLUMNS, [step[: len(_COLUMNS)] for step in shown]

    def _steps(self, config: Config, slot: str | None) -> list[Step]:
        """Where something prevents an engine, the trail so far; the error is kept for after it was shown."""
        plan = make_plan(config)
        try:
            started = bootstrap(config, plan)
        except PluginError as error:
            self._error = error
            return plugin_trail(plan, error.outcomes)
        bound_plan = started.binding.bound_plan
        steps = plugin_trail(plan, started.outcomes, bound_plan.platform)
        if slot in ("platform", "general"):
            return steps
        try:
            return steps + dispatch_trail(started.dispatcher())
        except VllmExtError as error:
            self._error = error
            return steps
