"""Does not come back, and does not want to be ended."""

import os
import signal
import time
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)
