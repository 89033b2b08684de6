"""``vllm-ext explain [SLOT]``: why this platform, this worker, these ops."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_ext.check.used_trail import never_used, process_entries, used_trail
from vllm_ext.cli.base import ListCommand, ends_on_signals, output_to_stderr
from vllm_ext.config import Config
from vllm_ext.dispatch.bootstrap import Bootstrapped, bootstrap
from vllm_ext.dispatch.engine_config import require_embedded
from vllm_ext.dispatch.planning import make_plan
from vllm_ext.dispatch.trail import dispatch_trail, plugin_trail
from vllm_ext.dispatch.trail_entry import SLOTS, TrailEntry
from vllm_ext.errors import ConfigError, PluginError, VllmExtError, dotted_path
from vllm_ext.plan import Plan, Receipt

_COLUMNS = ("slot", "candidate", "state", "owner", "reason", "origin")
_COLUMNS_OF_PROCESSES = ("process", "rank", "pid", "plan", "plugins", "seconds")
_COLUMNS_OF_RUN = ("slot", "candidate", "state", "owner", "at_start", "in_steps", "reason", "origin")


_PLUGIN_SLOTS = ("platform", "general")
"""Slots that are settled before there is an engine, so that any host has them."""


class Explain(ListCommand):
    """Show what was decided on platform, worker, attention, communicator, ops, and plugins of the other kinds.

    Also what the platform's hooks changed in the configuration.

    Chooses the platform and runs general plugins, as an engine does; loads no weights. With --run it starts an engine,
    generates a few tokens, and shows what was used: how many of a thing were built, or how often it was asked, until
    the engine stood, and how often it was called in the steps. ``explain --run processes`` has every process of that
    engine, with what it proved to run.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("slot", nargs="?", choices=SLOTS, metavar="SLOT", help=f"only this: {', '.join(SLOTS)}")
        parser.add_argument("--run", action="store_true", help="let a few tokens through an engine, and count")
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._error: VllmExtError | None = None
        self._code = 0
        self._receipts: tuple[Receipt, ...] = ()
        super().run(parsed_args)
        if self._error is not None:
            raise self._error
        return self._code

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        if parsed_args.slot == "processes" and not parsed_args.run:
            raise ConfigError("an engine has processes only when it runs: explain --run processes")
        config = self.load_config(parsed_args)
        # What plugins print is no result: stdout is for the rows alone.
        with ends_on_signals(), output_to_stderr(self.app.stdout):
            entries = self._entries(config, parsed_args.slot, with_run=parsed_args.run)
        clean = self.app.without_secrets
        shown = [e._replace(reason=clean(e.reason)) for e in entries if parsed_args.slot in (None, e.slot)]
        for sentence in never_used(shown):
            self.app.LOG.warning("%s", sentence)
        self._code = max((entry.error.exit_code for entry in shown if entry.error), default=0)
        if parsed_args.slot == "processes" and self._error is None:
            return _COLUMNS_OF_PROCESSES, [_process_row(receipt) for receipt in self._receipts]
        columns = _COLUMNS_OF_RUN if parsed_args.run else _COLUMNS
        return columns, [_row(entry, columns) for entry in shown]

    def _entries(self, config: Config, slot: str | None, *, with_run: bool) -> list[TrailEntry]:
        """Where something prevents an engine, the trail so far; the error is kept for after it was shown."""
        is_only_plugins = slot in _PLUGIN_SLOTS and not with_run
        if not is_only_plugins:
            require_embedded(config.settings, config.where("host"))
        plan = make_plan(config)
        try:
            started = bootstrap(config, plan)
        except PluginError as error:
            self._error = error
            return plugin_trail(plan, error.outcomes)
        bound_plan = started.binding.bound_plan
        entries = plugin_trail(plan, started.outcomes, bound_plan.platform)
        try:
            if with_run:
                return self._run_entries(plan, started, entries, slot)
            if is_only_plugins:
                return entries
            return entries + dispatch_trail(started.dispatcher())
        except VllmExtError as error:
            self._error = error
            return entries

    def _run_entries(
        self, plan: Plan, started: Bootstrapped, entries: list[TrailEntry], slot: str | None
    ) -> list[TrailEntry]:
        """The whole trail after a run, or without counts where that failed."""
        from vllm_ext.check.usage import Usage, WatchedDispatcher, run_a_little

        entries = entries + dispatch_trail(started.dispatcher())
        usage = Usage()
        try:
            self._receipts = run_a_little(WatchedDispatcher(started.binding, started.config, usage), usage)
        except VllmExtError as error:
            self._error = error
            return entries
        processes = list(process_entries(self._receipts))
        if usage.saw_workers:
            return used_trail(plan, entries, usage, dotted_path(type(started.binding.platform))) + processes
        if slot != "processes":
            self.app.LOG.warning(
                "the workers ran in processes of their own, where nothing is counted: no counts are shown; with "
                "engine.executor uniproc, and engine.core_process false, there are"
            )
        return entries + processes


def _process_row(receipt: Receipt) -> tuple[Any, ...]:
    rank = "" if receipt.rank is None else receipt.rank
    plugins = ", ".join(receipt.active)
    return receipt.process, rank, receipt.pid, receipt.fingerprint, plugins, round(receipt.seconds, 3)


def _row(entry: TrailEntry, columns: Sequence[str]) -> tuple[Any, ...]:
    values = (getattr(entry, column) for column in columns)
    return tuple("" if value is None else value for value in values)
