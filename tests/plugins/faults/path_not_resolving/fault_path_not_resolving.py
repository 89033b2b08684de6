"""Its class path leads to a module that is not there."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> str:
    """Entry point."""
    return "fault_path_not_resolving.missing.Platform"
