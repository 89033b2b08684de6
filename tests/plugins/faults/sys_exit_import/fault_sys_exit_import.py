"""Exits while it is imported."""

import os
import sys
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

sys.exit("this plugin ends whatever imports it")
