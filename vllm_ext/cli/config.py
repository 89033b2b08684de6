"""``vllm-ext config show | schema | sample``: the settings that hold, and which there are."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_ext.cli.base import FieldsCommand, ListCommand, OwnCommand
from vllm_ext.config import effective, json_schema, render_sample
from vllm_ext.config.keys import all_sections
from vllm_ext.errors import ConfigError, did_you_mean, listing


class ShowConfig(ListCommand):
    """Show the effective settings with the origin of each value; secrets are redacted."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("key", nargs="?", metavar="KEY", help="only this setting, or those of this section")
        parser.add_argument("--changed", action="store_true", help="only settings that a source has set")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        rows = effective(self.load_config(parsed_args))
        wanted = parsed_args.key
        if wanted is not None:
            keys = [key for key, _, _ in rows]
            rows = [row for row in rows if row[0] == wanted or row[0].startswith(f"{wanted}.")]
            if not rows:
                sections = all_sections() - {""}
                hint = did_you_mean(wanted, [*keys, *sections])
                raise ConfigError(f"command line (KEY): no setting {wanted!r}{hint}; sections: {listing(sections)}")
        shown = [(key, value, str(origin)) for key, value, origin in rows]
        if parsed_args.changed:
            shown = [row for row in shown if row[2] != "default"]
        return ("key", "value", "origin"), shown


class ShowSchema(FieldsCommand):
    """Print the JSON Schema of a settings file, for editors and checkers."""

    @property
    def formatter_default(self) -> str:
        return "json"

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        schema = json_schema()
        return tuple(schema), tuple(schema.values())


class ShowSample(OwnCommand):
    """Print a settings file with every setting at its default and its meaning above it."""

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        self.app.stdout.write(render_sample())
        return 0
