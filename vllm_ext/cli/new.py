"""``vllm-ext new``: a plugin project to go on from."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from vllm_ext.cli.base import OwnCommand
from vllm_ext.cli.new_project import new_project, write_project
from vllm_ext.contracts.groups import KINDS


class NewProject(OwnCommand):
    """Write a plugin project that installs, loads and has tests that pass, to go on from. Runs nothing."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(kind.key for kind in KINDS)}")
        parser.add_argument("name", metavar="NAME", help="the plugin's name, by which settings will know it")
        parser.add_argument("--directory", metavar="DIR", type=Path, help="an empty or new folder for it (./vllm-NAME)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        project = new_project(parsed_args.kind, parsed_args.name)
        directory = parsed_args.directory or Path(project.distribution)
        written = write_project(project, directory)
        lines = [
            *map(str, written),
            "",
            "Go on with:",
            f"  cd {shlex.quote(str(directory))}",
            "  python -m pip install -e '.[test]'",
            f"  vllm-ext show {project.name} --load",
            f"  vllm-ext check {project.name}",
            "  python -m pytest",
        ]
        self.app.stdout.write("".join(f"{line}\n" for line in lines))
        return 0
