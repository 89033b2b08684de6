"""Fails in a thread, where nobody sees it."""

import os
import threading
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> None:
    """Entry point."""
    thread = threading.Thread(target=fail, name="fault-thread")
    thread.start()
    thread.join()


def fail() -> None:
    """Runs in the thread."""
    raise ValueError("raised in a thread")
