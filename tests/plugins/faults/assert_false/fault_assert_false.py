"""Asserts something untrue, without a message."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> None:
    """Entry point."""
    assert Path() is None
