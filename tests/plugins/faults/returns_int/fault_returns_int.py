"""Returns a number where a class path is due."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> int:
    """Entry point."""
    return 3
