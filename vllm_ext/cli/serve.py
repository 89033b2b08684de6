"""``vllm-ext serve``: a model through the chosen platform, as an HTTP service."""

from __future__ import annotations

import argparse
import contextlib
import socket

from vllm_ext.cli.base import SettingsCommand, ends_on_signals, output_to_stderr
from vllm_ext.cli.engine_options import add_engine_options, engine_overrides, option_overrides
from vllm_ext.config import Config
from vllm_ext.errors import ConfigError
from vllm_ext.importing import without_gc
from vllm_ext.server import missing_packages
from vllm_ext.server.listening import bind

_OPTIONS = ("host", "port", "served_model_name")
"""Options that are keys of the settings' section ``server``. There is none for the key: others see a command line."""


class Serve(SettingsCommand):
    """Serve a model through the chosen platform over HTTP, with OpenAI's and vLLM's routes, until it is interrupted."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add = parser.add_argument
        add_engine_options(parser)
        add("--host", metavar="ADDRESS", help="address to listen on, 0.0.0.0 for all (127.0.0.1)")
        add("--port", type=int, metavar="N", help="port to listen on, 0 for any free one (8000)")
        add("--served-model-name", metavar="NAME", help="name of the model for clients (what --model is)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        overrides = [*engine_overrides(parsed_args), *option_overrides(parsed_args, "server", _OPTIONS)]
        config = self.load_config(parsed_args, *overrides)
        if missing := missing_packages():
            raise ConfigError(f"serve {missing}")

        with contextlib.closing(bind(config)) as sock:
            return self._serve(config, sock)

    def _serve(self, config: Config, sock: socket.socket) -> int:
        # torch comes in here, when everything that can be checked without it has been.
        with without_gc():
            from vllm_ext.server.run import Started, serve

        def announce(started: Started) -> None:
            self.app.stderr.write(f"serving at {started.url}\n")
            self.app.stderr.flush()

        with ends_on_signals(), output_to_stderr(self.app.stdout):
            serve(config, sock, announce, progress=self.app.stderr.isatty())
        return 0
