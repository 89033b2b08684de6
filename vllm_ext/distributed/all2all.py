"""Taking tokens to the experts of other ranks, with collectives that every communicator has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from vllm_ext.contracts.all2all import All2AllManagerBase
from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.errors import CollectiveError


class AllGatherReduceScatterManager(All2AllManagerBase):
    """Every rank sees the tokens of all and computes its own experts; the sum over the ranks goes back.

    Several dispatches may come before the combine that they belong to; that one goes by the last.
    """

    def __init__(self, communicator: DeviceCommunicatorBase) -> None:
        super().__init__(communicator.cpu_group)
        self._communicator = communicator
        self._sizes: list[int] | None = None

    def dispatch_router_logits(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[Any, ...]:
        return self._gather([hidden_states, router_logits], extra_tensors)

    def dispatch(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[Any, ...]:
        return self._gather([hidden_states, topk_weights, topk_ids], extra_tensors)

    def combine(self, hidden_states: torch.Tensor, is_sequence_parallel: bool = False) -> torch.Tensor:
        if self._sizes is None:
            raise CollectiveError(
                f"combine on rank {self.rank} of {self.world_size} in group {self._communicator.unique_name!r}: no "
                "dispatch came before it, which would have said how many tokens each rank has"
            )
        return self._communicator.reduce_scatterv(hidden_states, 0, self._sizes)

    def _gather(self, tensors: list[torch.Tensor], extra_tensors: list[torch.Tensor] | None) -> tuple[Any, ...]:
        """The rows of all ranks, in rank order, of each tensor; how many each has is exchanged first."""
        num_rows = torch.tensor([tensors[0].shape[0]], device="cpu")
        sizes = [torch.empty_like(num_rows) for _ in range(self.world_size)]
        dist.all_gather(sizes, num_rows, group=self.cpu_group)
        self._sizes = [int(size) for size in sizes]
        gathered = self._communicator.all_gatherv([*tensors, *(extra_tensors or [])], 0, self._sizes)
        if extra_tensors is None:
            return tuple(gathered)
        return (*gathered[: len(tensors)], list(gathered[len(tensors) :]))


ALL2ALL_MANAGERS: dict[str, Callable[[DeviceCommunicatorBase], All2AllManagerBase]] = {
    "allgather_reducescatter": AllGatherReduceScatterManager
}
"""By the name in ``parallel_config.all2all_backend`` (vLLM's); the first is the default."""
