"""``vllm-ext env`` and ``vllm-ext exec``: a real vLLM as the host of the plan."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm_ext.cli.base import FieldsCommand, SettingsCommand, ends_on_signals, output_to_stderr
from vllm_ext.cli.loading import load_reports
from vllm_ext.config import Override
from vllm_ext.dispatch.planning import make_plan
from vllm_ext.errors import ConfigError


class _HostCommand(SettingsCommand):
    """A command about a vLLM, whatever the setting ``host`` is for others."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--no-load", action="store_true", help="do not try the plugins first, each in a process of its own"
        )
        return parser

    def variables(self, parsed_args: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
        """What brings the plan to a vLLM; what else its user should know is logged.

        Effects: candidates for the platform are called in this process, other plugins in children.
        """
        config = self.load_config(parsed_args, Override("host", "vllm", f"vllm-ext {self.cmd_name}"))
        plan = make_plan(config)
        with ends_on_signals(), output_to_stderr(self.app.stdout):
            from vllm_ext.hosts import prepare, unpassed_settings

            load = None if parsed_args.no_load else functools.partial(load_reports, self.app, plan)
            prepared = prepare(plan, environ, load)
        for sentence in (*prepared.left_out, *unpassed_settings(prepared.bound_plan, self.command_of(parsed_args))):
            self.app.LOG.warning("%s", sentence)
        return prepared.variables

    def command_of(self, parsed_args: argparse.Namespace) -> Sequence[str]:
        """The command that vLLM is started by, where it is known."""
        return ()


class ShowEnvironment(_HostCommand, FieldsCommand):
    """Print the plan as environment variables of a vLLM: ``variables="$(vllm-ext env)" && eval "$variables"``.

    Chooses the platform, and tries each plugin in a process of its own. One that fails is left out, unless the settings
    name it; then that is the error. So is a plan that a vLLM cannot be given. Settings that need an option of vLLM's
    are named on standard error.
    """

    formatters = FieldsCommand.formatters | {"shell": "vllm_ext.cli.formatters:ExportFormatter"}

    @property
    def formatter_default(self) -> str:
        return "shell"

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        variables = self.variables(parsed_args, dict(os.environ))
        return tuple(variables), tuple(variables.values())


class Execute(_HostCommand):
    """Start a command, such as ``vllm serve MODEL``, so that it loads the plugins of the plan: ``exec -- COMMAND``.

    The command takes the place of this process, with the variables that ``vllm-ext env`` prints.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --, the command and its arguments")
        return parser

    def command_of(self, parsed_args: argparse.Namespace) -> Sequence[str]:
        command: list[str] = parsed_args.command
        return command

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        environ = dict(os.environ)
        command = parsed_args.command
        program = shutil.which(command[0])
        if program is None:
            where = "is a file that can be executed" if os.sep in command[0] else "is to be found on PATH"
            raise ConfigError(f"no command {command[0]!r} {where}; give another, or its path")
        variables = self.variables(parsed_args, environ)
        shown = " ".join(f"{name}={value}" for name, value in variables.items())
        self.app.LOG.info("%s %s", shown, program)
        _become(program, command, environ | variables)


def _become(program: str, command: list[str], environ: Mapping[str, str]) -> None:
    """Let the command take the place of this process, with signals as Python found them.

    Raises:
        ConfigError: the system cannot run it.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(program, command, environ)
    except OSError as error:
        raise ConfigError(f"{program} cannot be run: {error.strerror}") from error
