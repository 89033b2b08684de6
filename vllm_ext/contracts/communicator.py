"""The communicator contract: collectives between the devices of one group.

The base class computes every collective with torch.distributed; a platform overrides what its hardware does better.
The embedded engine calls the communicator at any group size, so a size-one call must be cheap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


class DeviceCommunicatorBase:
    """Collectives of one process group.

    Args:
        cpu_group: gloo group of the same ranks, for host tensors.
        device: where results live; host memory when omitted.
        device_group: group for device tensors; ``cpu_group`` when omitted.
        unique_name: e.g. ``tp:0``.
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
        self.use_all2all = use_all2all
        self.rank_in_group = dist.get_rank(cpu_group)
        self.world_size = dist.get_world_size(cpu_group)
        self.ranks = dist.get_process_group_ranks(cpu_group) if global_ranks is None else global_ranks
        self.global_rank = self.ranks[self.rank_in_group]
        self.rank = self.global_rank
        self.global_world_size = dist.get_world_size() if global_world_size is None else global_world_size

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        """Sum over the group, in place; returns the same tensor."""
        if self.world_size > 1:
            dist.all_reduce(input_, group=self.device_group)
        return input_

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Concatenate equal shares along ``dim``; a new tensor unless the group has one member."""
        if self.world_size == 1:
            return input_
        parts = [torch.empty_like(input_) for _ in range(self.world_size)]
        dist.all_gather(parts, input_.contiguous(), group=self.device_group)
        return torch.cat(parts, dim=dim)

    def reduce_scatter(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Sum over the group, then keep this rank's equal share along ``dim``."""
        if self.world_size == 1:
            return input_
        if input_.shape[dim] % self.world_size:
            raise ValueError(
                f"reduce_scatter: dimension {dim} of {tuple(input_.shape)} is not divisible by {self.world_size} ranks"
            )
        total = input_.clone()
        dist.all_reduce(total, group=self.device_group)
        return total.chunk(self.world_size, dim=dim)[self.rank_in_group].contiguous()

    def gather(self, input_: torch.Tensor, dst: int = 0, dim: int = -1) -> torch.Tensor | None:
        """Concatenate on rank ``dst`` (in the group) along ``dim``; ``None`` on the others."""
        if self.world_size == 1:
            return input_
        is_target = self.rank_in_group == dst
        parts = [torch.empty_like(input_) for _ in range(self.world_size)] if is_target else None
        dist.gather(input_.contiguous(), parts, dst=self.ranks[dst], group=self.device_group)
        return None if parts is None else torch.cat(parts, dim=dim)

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Fill ``tensor`` with that of rank ``src`` (in the group), in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=self.ranks[src], group=self.device_group)
        return tensor

    def send(self, tensor: torch.Tensor, dst: int | None = None) -> None:
        """Send to rank ``dst`` in the group, by default the next one; returns when the tensor may be reused."""
        target = (self.rank_in_group + 1) % self.world_size if dst is None else dst
        dist.send(tensor, dst=self.ranks[target], group=self.device_group)

    def recv(self, size: Sequence[int], dtype: torch.dtype, src: int | None = None) -> torch.Tensor:
        """Receive a tensor of ``size`` from rank ``src`` in the group, by default the previous one."""
        source = (self.rank_in_group - 1) % self.world_size if src is None else src
        tensor = torch.empty(tuple(size), dtype=dtype, device=self.device)
        dist.recv(tensor, src=self.ranks[source], group=self.device_group)
        return tensor

    def destroy(self) -> None:
        """Release what the communicator holds besides the groups."""
