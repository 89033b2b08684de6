"""Collectives over the tensor-parallel group, for model code; vLLM: ``vllm.distributed.communication_op``.

They work while the engine is built and while it steps. Layers of vllm_ext bind the communicator's methods once instead.
"""

from __future__ import annotations

import torch

from vllm_ext.distributed.parallel_state import get_tp_group


def tensor_model_parallel_all_reduce(input_: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks; ``input_`` may be changed. Any shape, any number dtype."""
    return get_tp_group().all_reduce(input_)


def tensor_model_parallel_all_gather(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The equal shares of all ranks along ``dim``, in rank order."""
    return get_tp_group().all_gather(input_, dim)


def tensor_model_parallel_reduce_scatter(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """This rank's equal share, along ``dim``, of the sum over all ranks."""
    return get_tp_group().reduce_scatter(input_, dim)


def tensor_model_parallel_gather(input_: torch.Tensor, dst: int = 0, dim: int = -1) -> torch.Tensor | None:
    """The equal shares of all ranks along ``dim`` on rank ``dst``; ``None`` on the others."""
    return get_tp_group().gather(input_, dst, dim)
