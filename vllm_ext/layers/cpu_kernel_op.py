"""Ops of the layers for which there is a compiled kernel."""

from __future__ import annotations

from vllm_ext import _custom_ops
from vllm_ext.contracts.custom_op import CustomOp
from vllm_ext.contracts.vllm_config import get_current_vllm_config


class CpuKernelOp(CustomOp):
    """An op whose ``forward_cpu`` is a compiled kernel: it runs where there are kernels for the engine's dtype."""

    @classmethod
    def can_run(cls, method: str) -> bool:
        return method != "forward_cpu" or _custom_ops.are_usable(get_current_vllm_config().model_config.dtype)
