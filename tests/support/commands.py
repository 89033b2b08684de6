"""Commands in a process of their own: what they import there, and what they say where nothing can be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

LARGE = ("torch", "jinja2", "fastapi", "uvicorn")
"""What an engine or a server is made of, and takes long to import."""


def run_without(arguments: Sequence[str], modules: Sequence[str] = LARGE) -> subprocess.CompletedProcess[str]:
    """Run ``vllm-ext`` with the path of this process. Where that imports one of ``modules``, the exit code is 1 and
    standard error ends with which.
    """
    program = (
        f"import sys; from vllm_ext.cli.main import main; code = main({[*arguments]!r}); "
        f"sys.exit(', '.join(sorted({{*{[*modules]!r}}} & {{*sys.modules}})) or code)"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def run_onto_full_disk(arguments: str, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``vllm-ext`` with a standard output that takes nothing; ``unbuffered`` is ``PYTHONUNBUFFERED``."""
    with open("/dev/full", "w") as full:
        return subprocess.run(
            [sys.executable, "-m", "vllm_ext", *arguments.split()],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
