"""What our commands share: the options that reach the settings, and formatters from static tables."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, ClassVar

from cliff.command import Command
from cliff.lister import Lister
from cliff.show import ShowOne
from stevedore.extension import Extension, ExtensionManager

from vllm_ext.cli.output import Output
from vllm_ext.config import Config, Override, load_config, parse_set
from vllm_ext.config.environment import split_names
from vllm_ext.config.redaction import secrets_in
from vllm_ext.errors import ConfigError, did_you_mean, printable

if TYPE_CHECKING:
    from cliff.app import App

    from vllm_ext.cli.main import VllmExtApp
    from vllm_ext.plan import Plan

_LIST_FORMATTERS = {
    "csv": "cliff.formatters.commaseparated:CSVLister",
    "json": "cliff.formatters.json_format:JSONFormatter",
    "table": "vllm_ext.cli.formatters:CheckedTableFormatter",
    "value": "cliff.formatters.value:ValueFormatter",
    "yaml": "cliff.formatters.yaml_format:YAMLFormatter",
}
_SHOW_FORMATTERS = {name: target for name, target in _LIST_FORMATTERS.items() if name != "csv"} | {
    "shell": "vllm_ext.cli.formatters:QuotingShellFormatter",
}
_WITH_ESCAPES = ("json", "yaml")
"""Formatters that write escapes of their own for what is not printable."""


class OwnCommand(Command):
    """A command that cliff does not look for parts of among the entry points of other distributions."""

    def _load_hooks(self) -> None:
        """No command hooks: cliff would import them from the entry points of other distributions."""
        self._hooks = []

    def get_epilog(self) -> str:
        """cliff would read the metadata of everything installed to say which distribution this command is from."""
        return self._epilog or ""


class SettingsCommand(OwnCommand):
    """A command that reads the settings, with ``--config-file``, ``--platform`` and ``--set``."""

    app: VllmExtApp

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        group = parser.add_argument_group("settings", "these win over environment and files")
        group.add_argument(
            "--config-file",
            action="append",
            default=[],
            metavar="FILE",
            help="YAML settings; can be repeated",
        )
        group.add_argument(
            "--platform", metavar="NAME", help="platform plugin, or several with commas, tried in this order"
        )
        group.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a setting, such as engine.block_size=32",
        )
        return parser

    def load_config(self, parsed_args: argparse.Namespace, *more: Override) -> Config:
        """The settings of this call; ``more`` comes from options of a single command and wins over ``--set``."""
        overrides = [parse_set(text) for text in parsed_args.set]
        if parsed_args.platform is not None:
            names = split_names(parsed_args.platform)
            if not names:
                raise ConfigError("command line (--platform): expected a platform's name, given nothing")
            overrides.append(Override("platform.driver", names[0] if len(names) == 1 else names, "--platform"))
        config = load_config(parsed_args.config_file, (*overrides, *more))
        self.app.hide(secrets_in(config.settings))
        return config


class _StaticFormatters(OwnCommand):
    """A command whose formatters come from a table of ours."""

    formatters: ClassVar[dict[str, str]]

    def _load_formatter_plugins(self) -> ExtensionManager[Any]:
        extensions = []
        for name, target in self.formatters.items():
            module, _, attribute = target.partition(":")
            formatter = getattr(importlib.import_module(module), attribute)
            entry_point = EntryPoint(name, target, "vllm_ext.formatters")
            extensions.append(Extension(name, entry_point, formatter, formatter()))
        return ExtensionManager.make_test_instance(extensions, namespace="vllm_ext.formatters")

    def run(self, parsed_args: argparse.Namespace) -> int:
        """On a terminal a table is as wide as that."""
        if self.app.stdout.isatty() and "fit_width" in parsed_args:
            parsed_args.fit_width = True
        return super().run(parsed_args)

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        _check_columns("-c", parsed_args.columns, column_names)
        return super().produce_output(parsed_args, column_names, data)  # type: ignore[misc, no-any-return]


class ListCommand(SettingsCommand, _StaticFormatters, Lister):
    """A command that returns columns and rows: in an order of its own, where no other is asked for."""

    formatters = _LIST_FORMATTERS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        # cliff's own text says that unknown columns are ignored.
        parser._option_string_actions[
            "--sort-column"
        ].help = "sort the rows by this column; can be repeated, the first has priority"
        return parser

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        _check_columns("--sort-column", parsed_args.sort_columns, column_names)
        if parsed_args.sort_direction and not parsed_args.sort_columns:
            option = f"--sort-{parsed_args.sort_direction}ending"
            raise ConfigError(f"command line ({option}): it needs a column to sort by; name one with --sort-column")
        rows = ([_shown(value, parsed_args.formatter) for value in row] for row in data)
        return super().produce_output(parsed_args, column_names, list(rows))


class FieldsCommand(_StaticFormatters, ShowOne):
    """A command that returns the fields of one thing and their values, which no setting changes."""

    formatters = _SHOW_FORMATTERS

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        values = [_shown(value, parsed_args.formatter) for value in data]
        return super().produce_output(parsed_args, column_names, values)


class ShowCommand(SettingsCommand, FieldsCommand):
    """A command that returns the fields of one thing and their values."""


def _shown(value: Any, formatter: str) -> Any:
    """A value of a row or field as it may reach a terminal; a text may have several lines."""
    if formatter in _WITH_ESCAPES or not isinstance(value, str):
        return value
    return printable(value, kept="\n\t")


def _check_columns(option: str, names: Iterable[str], columns: Sequence[str]) -> None:
    known = [name.lower() for name in columns]
    for name in names:
        if name.lower() not in known:
            hint = did_you_mean(name, columns)
            raise ConfigError(f"command line ({option}): no column {name!r}{hint}; columns: {', '.join(columns)}")


@contextlib.contextmanager
def output_to_stderr(stdout: Output) -> Iterator[Output]:
    """What is written to standard output inside the block goes to standard error: by Python, and by anything else.

    Yields: a stream that still leads to standard output; ``stdout`` itself where that was replaced by another.
    """
    import ctypes

    stdout.flush()
    kept = os.dup(1)
    is_descriptor = _descriptor(stdout) == 1
    try:
        os.dup2(2, 1)
        with contextlib.ExitStack() as stack:
            out = stdout
            if is_descriptor:
                out = Output(os.fdopen(kept, "w", encoding=stdout.encoding, errors="backslashreplace", closefd=False))
                stack.callback(out.close)
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield out
    finally:
        # C libraries have a buffer of their own, which they would write out when it is too late.
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


class _Terminated(KeyboardInterrupt):
    """Only an interrupt passes through the code of a plugin; anything else would be taken for the plugin's failure."""


@contextlib.contextmanager
def ends_on_signals() -> Iterator[None]:
    """SIGTERM inside the block, or SIGHUP as of a terminal that is closed, ends the command as an interrupt does.

    What it started is ended in order so. A SIGHUP that is ignored, as under nohup, stays ignored. Outside the main
    thread, which alone gets signals, nothing is changed: they are the business of the program whose thread it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def end(number: int, _frame: object) -> None:
        received.append(number)
        raise _Terminated

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    except _Terminated:
        raise SystemExit(128 + received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _descriptor(stream: Output) -> int | None:
    try:
        return int(stream.fileno())
    except (OSError, ValueError):
        return None


def json_array(records: Iterable[dict[str, Any]]) -> str:
    """A JSON array with a line for each record."""
    rows = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    return f"[\n{rows}\n]"


def report_problems(app: App, plan: Plan) -> int:
    """Say on stderr what is odd in the plan and what the settings ask for in vain; returns the exit code."""
    for note in plan.notes:
        app.LOG.warning("%s", note)
    for error in plan.errors:
        app.LOG.error("%s", error)
    return max((error.exit_code for error in plan.errors), default=0)
