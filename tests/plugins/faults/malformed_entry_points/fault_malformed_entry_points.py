"""One line of its ``entry_points.txt`` is not of the right form."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> None:
    """Entry point."""
