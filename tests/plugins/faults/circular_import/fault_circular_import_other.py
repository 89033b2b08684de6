"""The other half of the circle."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

from fault_circular_import import register

NAME = register.__name__
