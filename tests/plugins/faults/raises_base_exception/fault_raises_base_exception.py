"""Raises what is no ``Exception``."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


class Stop(BaseException):
    """Not caught by ``except Exception``."""


def register() -> None:
    """Entry point."""
    raise Stop("stopped by the plugin")
