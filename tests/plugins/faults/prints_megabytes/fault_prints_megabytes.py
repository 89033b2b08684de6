"""Prints 5 MB while it is imported, then works."""

import os
import sys
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

for stream in (sys.stdout, sys.stderr):
    stream.write(f"{'noise ' * 16}\n" * 25_000)


def register() -> None:
    """Entry point."""
