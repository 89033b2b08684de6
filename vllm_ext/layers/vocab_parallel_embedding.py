"""The two ends of a model that are as wide as the vocabulary, split over the tensor-parallel group by rows.

In vLLM: ``VocabParallelEmbedding`` and ``ParallelLMHead``. A tensor that is an argument is only read. A
``loaded_weight`` is a checkpoint's whole ``[vocabulary, hidden]``, in any dtype that weights are stored in;
CheckpointError where its shape or its dtype does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vllm_ext import _custom_ops
from vllm_ext.contracts.custom_op import PluggableLayer
from vllm_ext.distributed.binding import bind_collective
from vllm_ext.distributed.parallel_state import get_tp_group
from vllm_ext.layers.linear import ColumnParallelLinear, copy_checked, new_parameter
from vllm_ext.layers.sharding import padded_part, take


@PluggableLayer.register("vocab_parallel_embedding")
class VocabParallelEmbedding(PluggableLayer):
    """Token ids ``[tokens]`` to embeddings ``[tokens, hidden]``; each rank holds a range of the vocabulary.

    Each has room for as many rows as the others; rows beyond the vocabulary are zero.
    """

    _all_reduce: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        tp_group = get_tp_group()
        self.tp_rank = tp_group.rank_in_group
        self.tp_size = tp_group.world_size
        self.num_embeddings = num_embeddings
        self.part, self.rows = padded_part(num_embeddings, self.tp_rank, self.tp_size)
        self.weight = new_parameter((self.rows, embedding_dim), self.weight_loader)
        self.weight.data[len(self.part) :] = 0
        bind_collective(self, "_all_reduce", tp_group.communicator, "all_reduce")
        has_kernel = _custom_ops.are_usable(self.weight.dtype) and self.weight.is_cpu
        self._rows_of = _custom_ops.embedding if has_kernel else F.embedding

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: Any = None) -> None:
        """Copy this rank's rows of a table ``[vocabulary, hidden]`` into ``param``."""
        copy_checked(param.data[: len(self.part)], take(loaded_weight, 0, self.part, self.num_embeddings))

    def whole_shapes(self, param: nn.Parameter) -> dict[Any, tuple[int, ...]]:
        """Shape of the tensor that ``param``, which is only read, is a part of, as :meth:`LinearBase.whole_shapes`. An
        extension of vLLM's contract.
        """
        return {None: (self.num_embeddings, *param.shape[1:])}

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The rows of the table, summed over the ranks.

        Args:
            input_ids: int64 ``[tokens]``, below the vocabulary's size.

        Returns: ``[tokens, hidden]`` in the model's dtype.
        """
        if self.tp_size == 1:
            return self._all_reduce(self._rows_of(input_ids, self.weight))
        local = input_ids - self.tp_rank * self.rows
        foreign = (local < 0) | (local >= self.rows)
        embedded = F.embedding(local.masked_fill(foreign, 0), self.weight)
        return self._all_reduce(embedded.masked_fill_(foreign.unsqueeze(-1), 0))


@PluggableLayer.register("parallel_lm_head")
class ParallelLMHead(ColumnParallelLinear):
    """Hidden states ``[rows, hidden]`` to logits ``[rows, vocabulary]``, complete on every rank.

    Its rows are split as those of :class:`VocabParallelEmbedding`; logits of rows beyond the vocabulary are cut off, so
    that no such token can be sampled.
    """

    _all_gather: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, num_embeddings: int, embedding_dim: int, bias: bool = False) -> None:
        tp_group = get_tp_group()
        part, rows = padded_part(num_embeddings, tp_group.rank_in_group, tp_group.world_size)
        self._init_parts(embedding_dim, [num_embeddings], [part], bias, [rows])
        for param in self.parameters():
            param.data[len(part) :] = 0
        self.num_embeddings = num_embeddings
        self._is_padded = rows * tp_group.world_size != num_embeddings
        bind_collective(self, "_all_gather", tp_group.communicator, "all_gather")

    def tie_weights(self, embedding: VocabParallelEmbedding) -> None:
        """Use the embedding's weight; this layer then has none of its own to load."""
        self.weight = embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits, gathered from all ranks.

        Args:
            x: ``[rows, hidden]`` in the model's dtype.

        Returns: ``[rows, vocabulary]`` of the same dtype.
        """
        logits = self._all_gather(super().forward(x))
        return logits[..., : self.num_embeddings].contiguous() if self._is_padded else logits
