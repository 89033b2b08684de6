"""``vllm-ext complete``: completion of commands and options for a shell."""

from __future__ import annotations

import argparse
from importlib.metadata import EntryPoint
from typing import Any

from cliff import complete
from cliff.command import Command
from stevedore.extension import Extension, ExtensionManager

from vllm_ext.cli.base import OwnCommand

_SHELLS: dict[str, Any] = {"bash": complete.CompleteBash, "none": complete.CompleteNoCode}


class Complete(OwnCommand, complete.CompleteCommand):
    """Print what makes a shell complete commands and options: source <(vllm-ext complete)"""

    def __init__(self, app: Any, app_args: argparse.Namespace, cmd_name: str | None = None) -> None:
        # cliff's own constructor would import completion formatters from the entry points of other distributions.
        Command.__init__(self, app, app_args, cmd_name)
        extensions = [
            Extension(name, EntryPoint(name, f"cliff.complete:{shell.__name__}", "vllm_ext.shells"), shell, None)
            for name, shell in _SHELLS.items()
        ]
        self._formatters = ExtensionManager.make_test_instance(extensions, namespace="vllm_ext.shells")
