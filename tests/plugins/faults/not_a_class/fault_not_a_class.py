"""Its class path leads to a function."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> str:
    """Entry point."""
    return "fault_not_a_class.make_platform"


def make_platform() -> None:
    """No class."""
