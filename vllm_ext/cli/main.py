"""The application: a static table of commands over cliff, logging, and exit codes.

cliff looks for commands, hooks and formatters among the entry points of everything installed. Ours come from tables, so
that an unrelated distribution can neither break nor slow a command.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from cliff.app import App
from cliff.commandmanager import CommandManager

from vllm_ext._version import __version__
from vllm_ext.cli.log_handlers import LogFile, QuietStreamHandler
from vllm_ext.cli.output import Output
from vllm_ext.errors import VllmExtError, innermost_cause, message_of, plugin_traceback, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from cliff.command import Command

_COMMANDS = {
    "check": "vllm_ext.cli.check:Check",
    "complete": "vllm_ext.cli.complete:Complete",
    "config sample": "vllm_ext.cli.config:ShowSample",
    "config schema": "vllm_ext.cli.config:ShowSchema",
    "config show": "vllm_ext.cli.config:ShowConfig",
    "doctor": "vllm_ext.cli.doctor:Doctor",
    "env": "vllm_ext.cli.host:ShowEnvironment",
    "exec": "vllm_ext.cli.host:Execute",
    "explain": "vllm_ext.cli.explain:Explain",
    "list": "vllm_ext.cli.list:ListPlugins",
    "new": "vllm_ext.cli.new:NewProject",
    "plan": "vllm_ext.cli.plan:ShowPlan",
    "run": "vllm_ext.cli.run:Run",
    "serve": "vllm_ext.cli.serve:Serve",
    "show": "vllm_ext.cli.show:ShowPlugin",
}

_DESCRIPTION = "Choose, check and run the plugins of a vLLM-style inference engine."
_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
"""Level on stderr by cliff's verbosity: -q, nothing, -v, -vv."""


def _entry_point(name: str) -> EntryPoint:
    return EntryPoint(name, _COMMANDS[name], "vllm_ext.commands")


class StaticCommandManager(CommandManager):
    """Commands from the table above, imported when they are called."""

    def __init__(self) -> None:
        super().__init__(namespace=None, convert_underscores=False)
        self.commands |= {name: _entry_point(name) for name in _COMMANDS}


class _FitToShow(logging.Formatter):
    def __init__(self, text: str, app: VllmExtApp) -> None:
        super().__init__(text)
        self._app = app

    def format(self, record: logging.LogRecord) -> str:
        # cliff logs what a command raises; a MemoryError says no more than its name.
        error: object = record.msg
        if isinstance(error, Exception) and not message_of(error):
            record = copy.copy(record)
            record.msg = innermost_cause(error)
        return self._app.fit_to_show(super().format(record))


class VllmExtApp(App):
    """``vllm-ext``: logs go to stderr, results to stdout, errors become exit codes."""

    NAME = "vllm-ext"
    LOG = logging.getLogger("vllm_ext")
    stdout: Output

    def __init__(self, *, is_whole_process: bool = False) -> None:
        _make_streams_usable()
        super().__init__(_DESCRIPTION, __version__, StaticCommandManager(), deferred_help=True)
        self.stdout = Output(sys.stdout)
        # cliff has put its own command there.
        self.command_manager.commands["complete"] = _entry_point("complete")
        self._is_whole_process = is_whole_process
        self._handlers: list[logging.Handler] = []
        self._log_file: LogFile | None = None
        self._error: BaseException | None = None
        self._is_help_shown = False
        self._secrets: list[str] = []

    def hide(self, secrets: Sequence[str]) -> None:
        """Leave these texts out of everything that is written to standard error or logged from now on."""
        self._secrets = [*secrets]

    def without_secrets(self, text: str) -> str:
        """``text`` without what :meth:`hide` was told: plugins repeat their options."""
        if not self._secrets:
            return text
        from vllm_ext.config.redaction import scrub

        return scrub(text, self._secrets)

    def fit_to_show(self, text: str) -> str:
        """``text`` without secrets, and with commands for the terminal as escapes: plugins may have anything in names
        and errors.
        """
        return printable(self.without_secrets(text), kept="\n\t")

    def build_option_parser(self, *arguments: Any, **keywords: Any) -> argparse.ArgumentParser:
        """cliff's, which says of ``-q`` that warnings come through, and nothing of how often ``-v`` has an effect."""
        parser = super().build_option_parser(*arguments, **keywords)
        parser._option_string_actions["-q"].help = "Log errors alone; warnings too without it."
        parser._option_string_actions["-v"].help = "Log more: -v what is done, -vv how."
        parser._option_string_actions["--log-file"].help = "Also append the log to this file, with all of -vv."
        return parser

    def configure_logging(self) -> None:
        """Handlers on our own logger only; the root logger belongs to whoever embeds us."""
        self._add_handler(
            QuietStreamHandler(self.stderr),
            "%(levelname)s: %(message)s",
            _LEVELS[min(self.options.verbose_level, len(_LEVELS) - 1)],
        )
        if self.options.log_file is not None:
            try:
                self._log_file = LogFile(self.options.log_file)
            except OSError as error:
                self.parser.error(f"--log-file {self.options.log_file}: {error.strerror}")
            self._add_handler(self._log_file, self.LOG_FILE_MESSAGE_FORMAT, logging.DEBUG)
        self.LOG.setLevel(min(handler.level for handler in self._handlers))

    def run(self, argv: list[str]) -> int:
        """Run one command; without a command, show the help."""
        level = self.LOG.level
        try:
            try:
                code = super().run(argv)
            finally:
                # Also after --help, which ends with SystemExit. Left to the interpreter's end, it would fail there.
                _flush(self.stdout)
        except BrokenPipeError:
            _discard(self.stdout)
            return 141
        except OSError as error:
            _discard(self.stdout)
            # Not logged: options such as --version end before there is a handler.
            self._complain(f"ERROR: standard output cannot be written: {error.strerror or error}\n")
            return 1
        finally:
            for handler in self._handlers:
                self.LOG.removeHandler(handler)
                handler.close()
            self.LOG.setLevel(level)
        if self._log_file is not None and (fault := self._log_file.fault) is not None:
            self._complain(f"ERROR: --log-file {self.options.log_file} cannot be written: {fault.strerror or fault}\n")
            return code or 1
        return 0 if self._is_help_shown else code

    def interact(self) -> None:
        """Instead of cliff's prompt."""
        self.parser.print_help(self.stdout)
        self.stdout.write(f"\ncommands: {', '.join(sorted(self.command_manager.commands))}\n")
        self._is_help_shown = True

    def run_subcommand(self, argv: list[str]) -> int:
        """cliff logs what a command raises and keeps it for :meth:`clean_up`; its class has the exit code."""
        argv = self._with_help_last(argv)
        try:
            self.command_manager.find_command(argv)
        except ValueError:
            return self._refuse_unknown(argv)
        code = super().run_subcommand(argv)
        if not isinstance(self._error, VllmExtError):
            return code
        if not self.options.debug:
            # The code of a plugin that was chosen: its own traceback is what its author needs.
            self._complain(self.fit_to_show(plugin_traceback(self._error)))
        return self._error.exit_code

    def _refuse_unknown(self, argv: list[str]) -> int:
        """What cliff says of a command that it has not; cliff says it on standard output, which is for results."""
        text = f"{self.NAME}: {' '.join(argv)!r} is not a {self.NAME} command. See '{self.NAME} --help'.\n"
        if closest := self.get_fuzzy_matches(argv[0]):
            text += "".join(["Did you mean one of these?\n", *(f"  {name}\n" for name in closest)])
        self._complain(text)
        return 2

    def _complain(self, text: str) -> None:
        """Write to standard error; where that cannot be, nobody can be told, and the exit code says what there is."""
        with contextlib.suppress(OSError):
            self.stderr.write(text)
            self.stderr.flush()

    def _with_help_last(self, argv: list[str]) -> list[str]:
        """``help NAME ...`` as ``NAME ... --help``, for the command's own parser to answer.

        Of ``NAME ... --help`` cliff makes the former, and then refuses any other option that was given.
        """
        if argv[0] != "help" or len(argv) == 1:
            return argv
        try:
            self.command_manager.find_command(argv[1:])
        except ValueError:
            # cliff lists the commands that begin with it; there may be none.
            begins = any(name.split()[0] == argv[1] for name in self.command_manager.commands)
            return argv if begins else argv[1:]
        return [*argv[1:], "--help"]

    def prepare_to_run_command(self, cmd: Command) -> None:
        """cliff's hook between a command's import and its run."""
        if self._is_whole_process:
            # What was imported stays: to search it for garbage, above all at the end, is a tenth of what `list` takes.
            gc.freeze()

    def clean_up(self, cmd: Command, result: int, err: BaseException | None) -> None:
        self._error = err

    def _add_handler(self, handler: logging.Handler, text: str, level: int) -> None:
        handler.setFormatter(_FitToShow(text, self))
        handler.setLevel(level)
        self.LOG.addHandler(handler)
        self._handlers.append(handler)


def _make_streams_usable() -> None:
    """Standard output and error that can be written to, whatever they were started with.

    A character that a terminal cannot show becomes an escape instead of an error, and a closed stream a void.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush(stream: Output) -> None:
    if stream.has_failed:
        # That was said; what is left in the buffer would say it once more.
        _discard(stream)
    elif not stream.closed:
        stream.flush()


def _discard(stream: Output) -> None:
    """Let what is still in the stream's buffer go nowhere: the interpreter tries to write it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``vllm-ext``; returns the exit code. Without ``argv`` it is all that the process does."""
    return VllmExtApp(is_whole_process=argv is None).run(list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
