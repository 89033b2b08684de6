"""Who a communicator is in its process group, and what is said where a collective cannot be carried out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from vllm_ext.contracts.vllm_config import find_current_vllm_config
from vllm_ext.errors import CollectiveError


class GroupMember:
    """One rank of one process group.

    Args:
        cpu_group: gloo group of the same ranks, for host tensors.
        device: where results live; host memory when omitted.
        device_group: group for device tensors; ``cpu_group`` when omitted.
        unique_name: kind and number of the group, e.g. ``tp:0``; experts are spread over the ranks of ``ep:0``.
        global_ranks, global_world_size: members and size of the whole, for groups that torch.distributed does not
            know of.
        use_all2all: whether tokens are exchanged with the experts of other ranks; heeded in an ``ep`` group only.
    """

    def __init__(
        self,
        cpu_group: dist.ProcessGroup,
        device: torch.device | None = None,
        device_group: dist.ProcessGroup | None = None,
        unique_name: str = "",
        global_ranks: list[int] | None = None,
        global_world_size: int | None = None,
        use_all2all: bool = False,
    ) -> None:
        self.cpu_group = cpu_group
        self.device_group = cpu_group if device_group is None else device_group
        self.device = torch.device("cpu") if device is None else device
        self.unique_name = unique_name
        self.is_ep_communicator = unique_name.partition(":")[0] == "ep"
        self.use_all2all = use_all2all and self.is_ep_communicator
        config = find_current_vllm_config()
        self.all2all_backend = None if config is None else config.parallel_config.all2all_backend
        """How tokens reach experts in the engine being built; ``None`` outside of one."""
        self.rank_in_group = dist.get_rank(cpu_group)
        self.world_size = dist.get_world_size(cpu_group)
        self.ranks = dist.get_process_group_ranks(cpu_group) if global_ranks is None else global_ranks
        self.global_rank = self.ranks[self.rank_in_group]
        self.rank = self.global_rank
        self.global_world_size = dist.get_world_size() if global_world_size is None else global_world_size

    def _copy(self, method: str, result: torch.Tensor, output: torch.Tensor) -> None:
        if output.shape != result.shape:
            raise self._error(method, output, f"as output; the result has shape {list(result.shape)}")
        output.copy_(result)

    def _dim(self, method: str, tensor: torch.Tensor, dim: int) -> int:
        if not -tensor.dim() <= dim < tensor.dim():
            raise self._error(method, tensor, f"there is no dimension {dim}")
        return dim % tensor.dim()

    def _check_sizes(self, method: str, tensor: torch.Tensor, sizes: Sequence[int]) -> None:
        if len(sizes) != self.world_size or min(sizes) < 0:
            raise self._error(method, tensor, f"sizes {sizes} have to be one length from 0 on for each rank")

    def _global_rank(self, method: str, argument: str, rank: int) -> int:
        if not 0 <= rank < self.world_size:
            raise CollectiveError(f"{method} on {self._where()}: {argument} is {rank}, and there is no such rank")
        return self.ranks[rank]

    def _peer(self, method: str, argument: str, rank: int) -> int:
        peer = self._global_rank(method, argument, rank)
        if rank == self.rank_in_group:
            raise CollectiveError(f"{method} on {self._where()}: {argument} is this rank itself")
        return peer

    def _error(self, method: str, tensor: torch.Tensor, what: str) -> CollectiveError:
        return CollectiveError(f"{method} on {self._where()}, tensor of shape {list(tensor.shape)}: {what}")

    def _where(self) -> str:
        name = f"group {self.unique_name!r}" if self.unique_name else "a group without name"
        return f"rank {self.rank_in_group} of {self.world_size} in {name}"
