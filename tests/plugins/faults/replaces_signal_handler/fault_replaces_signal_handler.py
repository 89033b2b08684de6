"""Takes interrupts and terminations for itself."""

import os
import signal
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> None:
    """Entry point."""
    signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
