"""Says why it is not for this machine."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

from vllm_ext import Unavailable


def register() -> str:
    """Entry point."""
    raise Unavailable("no device in this machine")
