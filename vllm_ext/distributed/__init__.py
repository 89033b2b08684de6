"""Process groups and the communicators that work on them; names are where vLLM has them, in ``vllm.distributed``."""

from vllm_ext.distributed.communication_op import (
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
    tensor_model_parallel_gather,
    tensor_model_parallel_reduce_scatter,
)
from vllm_ext.distributed.parallel_state import GroupCoordinator, get_tp_group

__all__ = [
    "GroupCoordinator",
    "get_tp_group",
    "tensor_model_parallel_all_gather",
    "tensor_model_parallel_all_reduce",
    "tensor_model_parallel_gather",
    "tensor_model_parallel_reduce_scatter",
]
