"""Leaves a process running."""

import os
import subprocess
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

child = subprocess.Popen(["sleep", "3600"])


def register() -> None:
    """Entry point."""
