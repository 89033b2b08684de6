"""What our commands share: the options that reach the settings, and formatters from a static table."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

from cliff.command import Command
from cliff.lister import Lister
from stevedore.extension import Extension, ExtensionManager

from vllm_ext.config import Config, Override, load_config, parse_set
from vllm_ext.config.environment import split_names
from vllm_ext.errors import ConfigError, did_you_mean

_LIST_FORMATTERS = {
    "csv": "cliff.formatters.commaseparated:CSVLister",
    "json": "cliff.formatters.json_format:JSONFormatter",
    "table": "cliff.formatters.table:TableFormatter",
    "value": "cliff.formatters.value:ValueFormatter",
    "yaml": "cliff.formatters.yaml_format:YAMLFormatter",
}


class SettingsCommand(Command):
    """A command that reads the settings, with ``--config-file``, ``--platform`` and ``--set``."""

    def _load_hooks(self) -> None:
        """No command hooks: cliff would import them from the entry points of other distributions."""
        self._hooks = []

    def get_epilog(self) -> str:
        """cliff would read the metadata of everything installed to say which distribution this command is from."""
        return self._epilog or ""

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
        return load_config(parsed_args.config_file, (*overrides, *more))


class ListCommand(SettingsCommand, Lister):
    """A command that returns columns and rows."""

    def _load_formatter_plugins(self) -> ExtensionManager[Any]:
        extensions = []
        for name, target in _LIST_FORMATTERS.items():
            module, _, attribute = target.partition(":")
            formatter = getattr(importlib.import_module(module), attribute)
            entry_point = EntryPoint(name, target, self.formatter_namespace)
            extensions.append(Extension(name, entry_point, formatter, formatter()))
        return ExtensionManager.make_test_instance(extensions, namespace=self.formatter_namespace)

    @property
    def need_sort_by_cliff(self) -> bool:
        return False

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        for name in parsed_args.columns:
            if name.lower() not in column_names:
                hint = did_you_mean(name, column_names)
                raise ConfigError(f"command line (-c): no column {name!r}{hint}; columns: {', '.join(column_names)}")
        return super().produce_output(parsed_args, column_names, data)
