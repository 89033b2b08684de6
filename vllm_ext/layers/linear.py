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
from vllm_ext.distributed.binding import bind_collective
from vllm_ext.distributed.parallel_state import get_tp_group
from vllm_ext.errors import CheckpointError
from vllm_ext.layers.sharding import even_part, heads_of, take


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

    def whole_shapes(self, param: nn.Parameter) -> dict[Any, tuple[int, ...]]:
        """Shapes of the tensors that ``param``, which is only read, is a part of on this rank, by the ``shard_id`` of
        each. An extension of vLLM's contract.
        """
        return {None: tuple(param.shape)}

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
        tp_group = get_tp_group()
        rank, world_size = tp_group.rank_in_group, tp_group.world_size
        parts = [even_part(size, rank, world_size, "an output size of") for size in output_sizes]
        self._init_parts(input_size, output_sizes, parts, bias)

    def _init_parts(
        self,
        input_size: int,
        output_sizes: Sequence[int],
        parts: Sequence[range],
        bias: bool,
        local_sizes: Sequence[int] | None = None,
    ) -> None:
        """The rest of construction, once it is known which rows of each projection are this rank's.

        Args:
            local_sizes: rows that there is room for, where those are more.
        """
        self.output_sizes = list(output_sizes)
        self.parts = list(parts)
        self.local_sizes = list(map(len, parts) if local_sizes is None else local_sizes)
        super().__init__(input_size, sum(self.local_sizes), bias)

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: Any = 0) -> None:
        index = self._index(shard_id)
        part = self.parts[index]
        target = param.data.narrow(0, sum(self.local_sizes[:index]), len(part))
        copy_checked(target, take(loaded_weight, 0, part, self.output_sizes[index]))

    def whole_shapes(self, param: nn.Parameter) -> dict[Any, tuple[int, ...]]:
        return {i: (size, *param.shape[1:]) for i, size in enumerate(self.output_sizes)}

    def _index(self, shard_id: Any) -> int:
        """Which of :attr:`parts` a ``shard_id`` stands for."""
        return int(shard_id)


@PluggableLayer.register("column_parallel_linear")
class ColumnParallelLinear(MergedColumnParallelLinear):
    """A weight split by rows: each rank computes a part of the output."""

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__(input_size, [output_size], bias)


@PluggableLayer.register("qkv_parallel_linear")
class QKVParallelLinear(MergedColumnParallelLinear):
    """Query, key and value projections, split by heads. ``shard_id`` is ``q``, ``k`` or ``v``.

    Where there are fewer KV heads than ranks, several ranks have the same one; see
    :func:`~vllm_ext.layers.sharding.heads_of`.

    Attributes:
        num_heads, num_kv_heads: on this rank.
        query_columns: this rank's part of the input of the projection that follows attention.
    """

    def __init__(
        self, hidden_size: int, head_size: int, total_num_heads: int, total_num_kv_heads: int, bias: bool = False
    ) -> None:
        tp_group = get_tp_group()
        heads = heads_of(total_num_heads, total_num_kv_heads, tp_group.rank_in_group, tp_group.world_size)
        self.num_heads, self.num_kv_heads = len(heads.query), len(heads.kv)
        self.query_columns, kv_rows = heads.columns(head_size)
        kv_size = total_num_kv_heads * head_size
        sizes = [total_num_heads * head_size, kv_size, kv_size]
        self._init_parts(hidden_size, sizes, [self.query_columns, kv_rows, kv_rows], bias)

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: Any = "q") -> None:
        super().weight_loader(param, loaded_weight, shard_id)

    def whole_shapes(self, param: nn.Parameter) -> dict[Any, tuple[int, ...]]:
        return {"qkv"[i]: shape for i, shape in super().whole_shapes(param).items()}

    def _index(self, shard_id: Any) -> int:
        return "qkv".index(shard_id)


@PluggableLayer.register("row_parallel_linear")
class RowParallelLinear(LinearBase):
    """A weight split by columns: each rank has a part of the input; the partial products are summed over the group.

    Args:
        input_part: columns of this rank, where the ranks' are not equally many.
    """

    _all_reduce: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, input_size: int, output_size: int, bias: bool = False, input_part: range | None = None) -> None:
        tp_group = get_tp_group()
        rank, world_size = tp_group.rank_in_group, tp_group.world_size
        self.whole_input_size = input_size
        self.part = even_part(input_size, rank, world_size, "an input size of") if input_part is None else input_part
        super().__init__(len(self.part), output_size, bias)
        bind_collective(self, "_all_reduce", tp_group.communicator, "all_reduce")
        # The sum over the ranks may count the bias once only.
        self._adds_bias = tp_group.rank_in_group == 0

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: Any = None) -> None:
        # What there is one of for each row: a bias, the scales of a quantized weight.
        whole = param.dim() == 1
        copy_checked(param.data, loaded_weight if whole else take(loaded_weight, 1, self.part, self.whole_input_size))

    def whole_shapes(self, param: nn.Parameter) -> dict[Any, tuple[int, ...]]:
        return {None: tuple(param.shape) if param.dim() == 1 else (param.shape[0], self.whole_input_size)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias if self._adds_bias else None
        return self._all_reduce(self.linear_method.apply(self, x, bias))
