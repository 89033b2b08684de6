"""Has a function where a class is due."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def halve(logits: object) -> object:
    """No class."""
    return logits
