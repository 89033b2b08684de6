"""Imports a name of a module that imports a name of this one."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

from fault_circular_import_other import NAME


def register() -> str:
    """Entry point."""
    return NAME
