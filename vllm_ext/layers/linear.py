"""Dense layers, split over the tensor-parallel group the engine is built for.

Each parameter carries vLLM's ``weight_loader(param, loaded_weight[, shard_id])``, which copies the part of a
checkpoint's tensor that belongs to this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vllm_ext.contracts.custom_op import PluggableLayer
from vllm_ext.contracts.vllm_config import get_current_vllm_config
from vllm_ext.dispatch.dispatcher import get_current_dispatcher
from vllm_ext.distributed.parallel_state import get_tp_group
from vllm_ext.errors import CheckpointError, ConfigError


def new_parameter(shape: Sequence[int], weight_loader: Callable[..., None]) -> nn.Parameter:
    """An uninitialised parameter in the model's dtype, with its loader."""
    dtype = get_current_vllm_config().model_config.dtype
    parameter = nn.Parameter(torch.empty(tuple(shape), dtype=dtype), requires_grad=False)
    parameter.weight_loader = weight_loader  # type: ignore[attr-defined]
    return parameter


_STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_stored_dtype(loaded: torch.Tensor) -> None:
    """CheckpointError unless the dtype is one that weights are stored in."""
    if loaded.dtype not in _STORED_DTYPES:
        raise CheckpointError(f"its dtype is {loaded.dtype}; supported: {', '.join(map(str, _STORED_DTYPES))}")


def copy_checked(target: torch.Tensor, loaded: torch.Tensor) -> None:
    """Copy with conversion between floating-point dtypes; CheckpointError where shapes differ, or for other dtypes."""
    if loaded.dtype is not target.dtype:
        check_stored_dtype(loaded)
    if target.shape != loaded.shape:
        raise CheckpointError(f"its shape is {list(loaded.shape)}; the model has {list(target.shape)} there")
    target.copy_(loaded)


def shard(loaded: torch.Tensor, dim: int, rank: int, world_size: int) -> torch.Tensor:
    """This rank's equal part of a checkpoint's tensor along ``dim``."""
    if world_size == 1:
        return loaded
    return loaded.chunk(world_size, dim=dim)[rank]


def divide(size: int, parts: int, what: str) -> int:
    """``size / parts``; ConfigError where that is not whole."""
    if size % parts:
        raise ConfigError(f"{what} {size} cannot be split evenly over tensor_parallel_size {parts}")
    return size // parts


class LinearBase(PluggableLayer):
    """Weight ``[out, in]`` and bias ``[out]`` of this rank, and the platform's method to apply them. Its subclasses
    have the names of vLLM's ``RowParallelLinear``, ``ColumnParallelLinear`` and others. A tensor that is an argument is
    only read.
    """

    def __init__(self, input_size: int, output_size: int, bias: bool) -> None:
        super().__init__()
        tp_group = get_tp_group()
        self.tp_rank = tp_group.rank_in_group
        self.tp_size = tp_group.world_size
        self.input_size = input_size
        self.output_size = output_size
        self.weight: nn.Parameter | None = new_parameter((output_size, input_size), self.weight_loader)
        self.bias = new_parameter((output_size,), self.weight_loader) if bias else None
        self.linear_method = get_current_dispatcher().linear_method()

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: Any = None) -> None:
        """Copy the part of a checkpoint's tensor that belongs to this rank into ``param``, in place.

        Args:
            param: part of the weight or the bias; changed in place.
            loaded_weight: ``[out, in]`` or ``[out]`` of the whole group, in any dtype that weights are stored in.
            shard_id: which of several projections that lie in one weight.

        Raises:
            CheckpointError: its shape or dtype does not fit.
        """
        copy_checked(param.data, loaded_weight)

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Let the platform's method rearrange the weight; called once, by the loader. An extension of vLLM's contract,
        whose loader calls that method.
        """
        self.linear_method.process_weights_after_loading(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, by the layer's method.

        Args:
            x: ``[rows, in]`` in the model's dtype, the part of this rank where the weight is split by columns.

        Returns: ``[rows, out]`` of the same dtype, the part of this rank where the weight is split by rows.
        """
        return self.linear_method.apply(self, x, self.bias)

    def extra_repr(self) -> str:
        """For people, where the model is printed."""
        return f"in={self.input_size}, out={self.output_size}, bias={self.bias is not None}, tp={self.tp_size}"


@PluggableLayer.register("replicated_linear")
class ReplicatedLinear(LinearBase):
    """The whole weight on every rank."""

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__(input_size, output_size, bias)


@PluggableLayer.register("merged_column_parallel_linear")
class MergedColumnParallelLinear(LinearBase):
    """Several projections of one input as one product, each split by rows. ``shard_id`` is a projection's index."""

    def __init__(self, input_size: int, output_sizes: Sequence[int], bias: bool = False) -> None:
        world_size = get_tp_group().world_size
        self.local_sizes = [divide(size, world_size, "an output size of") for size in output_sizes]
        super().__init__(input_size, sum(self.local_sizes), bias)

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: Any = 0) -> None:
        start = sum(self.local_sizes[:shard_id])
        target = param.data.narrow(0, start, self.local_sizes[shard_id])
        copy_checked(target, shard(loaded_weight, 0, self.tp_rank, self.tp_size))


@PluggableLayer.register("column_parallel_linear")
class ColumnParallelLinear(MergedColumnParallelLinear):
    """A weight split by rows: each rank computes a part of the output."""

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__(input_size, [output_size], bias)


@PluggableLayer.register("qkv_parallel_linear")
class QKVParallelLinear(MergedColumnParallelLinear):
    """Query, key and value projections, split by heads. ``shard_id`` is ``q``, ``k`` or ``v``."""

    def __init__(
        self, hidden_size: int, head_size: int, total_num_heads: int, total_num_kv_heads: int, bias: bool = False
    ) -> None:
        world_size = get_tp_group().world_size
        self.num_heads = divide(total_num_heads, world_size, "a number of heads of")
        self.num_kv_heads = divide(total_num_kv_heads, world_size, "a number of KV heads of")
        kv_size = total_num_kv_heads * head_size
        super().__init__(hidden_size, [total_num_heads * head_size, kv_size, kv_size], bias)

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: Any = "q") -> None:
        super().weight_loader(param, loaded_weight, "qkv".index(shard_id))


@PluggableLayer.register("row_parallel_linear")
class RowParallelLinear(LinearBase):
    """A weight split by columns: each rank has a part of the input; the partial products are summed over the group."""

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        tp_group = get_tp_group()
        super().__init__(divide(input_size, tp_group.world_size, "an input size of"), output_size, bias)
        self._all_reduce = tp_group.communicator.all_reduce
        # The sum over the ranks may count the bias once only.
        self._adds_bias = tp_group.rank_in_group == 0

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: Any = None) -> None:
        # What there is one of for each row: a bias, the scales of a quantized weight.
        whole = param.dim() == 1
        copy_checked(param.data, loaded_weight if whole else shard(loaded_weight, 1, self.tp_rank, self.tp_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias if self._adds_bias else None
        return self._all_reduce(self.linear_method.apply(self, x, bias))
