"""Imports a module that is not there."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

import fault_import_error_missing

register = fault_import_error_missing.register
