"""The name of its entry point commands a terminal to write in red."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> None:
    """Entry point."""
