"""Nothing is wrong here: it registers a model architecture."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

from vllm_ext import ModelRegistry


def register() -> None:
    """Entry point."""
    ModelRegistry.register_model("GoodForCausalLM", "fault_good_model:GoodForCausalLM")
