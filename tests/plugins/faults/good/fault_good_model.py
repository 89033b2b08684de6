"""The model of the plugin ``good``."""

import os
from pathlib import Path

if "FAULTS_CANARY" in os.environ:
    (Path(os.environ["FAULTS_CANARY"]) / __name__).touch()

from vllm_ext.models.llama import LlamaForCausalLM


class GoodForCausalLM(LlamaForCausalLM):
    """The in-tree Llama."""
