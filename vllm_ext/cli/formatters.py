"""Formatters of cliff, with what it leaves to chance made certain."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any, TextIO

from cliff.formatters.base import SingleFormatter
from cliff.formatters.shell import ShellFormatter
from cliff.formatters.table import TableFormatter

from vllm_ext import envs
from vllm_ext.errors import ConfigError

_SPECIAL = re.compile(r'["$`]|\\(?=["$`\\\n]|\Z)')
"""What a shell does not take as it is between double quotes; a backslash before anything else stands for itself."""
_WIDTHS = {
    envs.CLIFF_MAX_TERM_WIDTH: "the characters of a table's line, 0 for no limit",
    envs.CLIFF_FIT_WIDTH: "1 to fit tables to the terminal, 0 not to",
}


class QuotingShellFormatter(ShellFormatter):
    """Assignments of which a shell runs nothing: a plugin's metadata and errors may hold commands.

    cliff's own escapes double quotes alone.
    """

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed_args: argparse.Namespace
    ) -> None:
        """Write a line ``name="value"`` for each column, or for those of cliff's ``--variable``.

        Raises:
            ConfigError: no shell has variables that begin with ``--prefix``.
        """
        prefix = parsed_args.prefix
        if prefix and not re.fullmatch(r"[A-Za-z_]\w*", prefix, re.ASCII):
            raise ConfigError(
                f"command line (--prefix): {prefix!r} begins no name of a variable; it takes letters, digits and _, "
                "and no digit first"
            )
        for name, value in zip(column_names, data, strict=True):
            variable = re.sub(r"\W", "_", name.lower(), flags=re.ASCII)
            quoted = _SPECIAL.sub(r"\\\g<0>", str(value))
            if not parsed_args.variables or variable in parsed_args.variables:
                stdout.write(f'{prefix}{variable}="{quoted}"\n')


class ExportFormatter(SingleFormatter):
    """Lines ``export NAME='value'`` for a shell; names are taken as they are."""

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        """It has no options."""

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed_args: argparse.Namespace
    ) -> None:
        """Write a line for each variable; a shell runs nothing of what is in a value."""
        for name, value in zip(column_names, data, strict=True):
            stdout.write(f"export {name}={shlex.quote(str(value))}\n")


class CheckedTableFormatter(TableFormatter):
    """A table whose variables of the environment are numbers, or refused by name."""

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        """Add cliff's options.

        Raises:
            ConfigError: a variable that gives their defaults is no number.
        """
        for name, meaning in _WIDTHS.items():
            text = os.environ.get(name, "0")
            try:
                int(text)
            except ValueError:
                raise ConfigError(f"environment ({name}): expected {meaning}, given {text!r}") from None
        super().add_argument_group(parser)
