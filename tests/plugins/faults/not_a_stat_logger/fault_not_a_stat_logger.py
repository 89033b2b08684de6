"""Its class is no stat logger."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


class Counter:
    """Counts steps, but does not derive from ``StatLoggerBase``."""

    steps = 0
