"""Whether the layers of an engine can use the compiled kernels."""

from __future__ import annotations

from vllm_ext import _custom_ops
from vllm_ext.contracts.vllm_config import get_current_vllm_config


def kernels_are_usable() -> bool:
    """For the engine that is being built: its dtype decides, and whether there are kernels."""
    return _custom_ops.are_usable(get_current_vllm_config().model_config.dtype)
