"""Raises an error that has a cause."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> None:
    """Entry point."""
    try:
        {}["device"]
    except KeyError as error:
        raise ValueError("the settings name no device") from error
