"""Its class path leads to a class that is no platform."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


class NotAPlatform:
    """Has the words, but not the base class."""

    device_type = "cpu"
    device_name = "cpu"


def register() -> str:
    """Entry point."""
    return "fault_wrong_platform.NotAPlatform"
