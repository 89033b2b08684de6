"""The communicator: every collective is made of one exchange of everybody's tensors."""

from __future__ import annotations

import torch
import torch.distributed as dist

from vllm_ext import DeviceCommunicatorBase
from vllm_ext_dummy_platform import calls


class MyDummyDeviceCommunicator(DeviceCommunicatorBase):
    """Sums are taken in rank order on each rank, so that all ranks hold the same bits."""

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        calls["all_reduce"] += 1
        if self.world_size == 1:
            return input_
        return input_.copy_(torch.stack(self._exchange(input_)).sum(dim=0))

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        calls["all_gather"] += 1
        if self.world_size == 1:
            return input_
        return torch.cat(self._exchange(input_), dim=dim)

    def reduce_scatter(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        calls["reduce_scatter"] += 1
        if self.world_size == 1:
            return input_
        if input_.shape[dim] % self.world_size:
            raise ValueError(
                f"reduce_scatter: {self.world_size} ranks cannot share dimension {dim} of {tuple(input_.shape)}"
            )
        shares = [part.chunk(self.world_size, dim=dim)[self.rank_in_group] for part in self._exchange(input_)]
        return torch.stack(shares).sum(dim=0)

    def gather(self, input_: torch.Tensor, dst: int = 0, dim: int = -1) -> torch.Tensor | None:
        calls["gather"] += 1
        if self.world_size == 1:
            return input_
        parts = self._exchange(input_)
        return torch.cat(parts, dim=dim) if self.rank_in_group == dst else None

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        calls["broadcast"] += 1
        if self.world_size == 1:
            return tensor
        return tensor.copy_(self._exchange(tensor)[src])

    def _exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, in rank order."""
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor, group=self.device_group)
        return parts
