"""Its platform does not say which device it is."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

from vllm_ext import Platform, PlatformEnum


class IncompletePlatform(Platform):
    """Without ``device_type``."""

    _enum = PlatformEnum.OOT
    device_name = "incomplete"


def register() -> str:
    """Entry point."""
    return "fault_incomplete_platform.IncompletePlatform"
