"""Exits when it is called, as if all were well."""

import os
import sys
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> None:
    """Entry point."""
    sys.exit(0)
