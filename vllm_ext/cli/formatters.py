"""Formatters of cliff, with what it leaves to chance made certain."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from cliff.formatters.base import SingleFormatter
from cliff.formatters.shell import ShellFormatter
from cliff.formatters.table import TableFormatter
from cliff.utils import terminal_width

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
    """A table whose variables of the environment are numbers, or refused by name, and which takes little to print."""

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

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Write cliff's table.

        One of plain texts that is not too wide is drawn here: cliff's asks a library how wide each character is, whose
        import is a tenth of what ``vllm-ext list`` takes.
        """
        rows = [tuple(row) for row in data]
        if rows and all(map(_is_plain, (*column_names, *(value for row in rows for value in row)))):
            lines = _drawn(column_names, rows)
            if len(lines[0]) <= _width_limit(parsed_args):
                stdout.write("".join(f"{line}\n" for line in lines))
                return
        super().emit_list(column_names, rows, stdout, parsed_args)


def _is_plain(value: object) -> bool:
    """Whether it is a text of one line whose characters are as wide as each other."""
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _drawn(column_names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(column_names, *rows, strict=True)]
    rule = f"+{'+'.join('-' * (width + 2) for width in widths)}+"
    heads, *lines = (
        f"|{'|'.join(f' {text:{width}} ' for text, width in zip(row, widths, strict=True))}|"
        for row in (column_names, *rows)
    )
    return [rule, heads, rule, *lines, rule]


def _width_limit(parsed_args: argparse.Namespace) -> float:
    """The characters of a line from which cliff makes columns narrower."""
    if parsed_args.max_width > 0:
        return int(parsed_args.max_width)
    is_fit = parsed_args.fit_width or sys.stdout.isatty()
    return (is_fit and terminal_width()) or float("inf")
