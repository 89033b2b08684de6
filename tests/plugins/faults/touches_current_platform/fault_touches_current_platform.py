"""Asks for the platform while it is being chosen."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()


def register() -> str | None:
    """Entry point."""
    from vllm_ext import current_platform

    return None if current_platform.device_type == "cpu" else "fault_touches_current_platform.Platform"
