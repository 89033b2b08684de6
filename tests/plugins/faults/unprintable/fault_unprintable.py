"""Raises an error that cannot be printed."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


class Unprintable(Exception):
    """Fails once more when somebody looks."""

    def __str__(self) -> str:
        raise RuntimeError("no text for this error")

    __repr__ = __str__


def register() -> None:
    """Entry point."""
    raise Unprintable
