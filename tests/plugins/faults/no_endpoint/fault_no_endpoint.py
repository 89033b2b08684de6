"""Makes an object that has nothing of an endpoint."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> object:
    """Entry point."""
    return object()
