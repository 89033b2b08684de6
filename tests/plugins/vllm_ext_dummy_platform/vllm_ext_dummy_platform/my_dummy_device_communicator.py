"""The communicator: every collective is made of one exchange of everybody's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from vllm_ext import DeviceCommunicatorBase
from vllm_ext_dummy_platform import calls, carried


class MyDummyDeviceCommunicator(DeviceCommunicatorBase):
    """Sums are taken in rank order on each rank, so that all ranks hold the same bits."""

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        calls["all_reduce"] += 1
        if self.world_size == 1:
            return input_
        carried["all_reduce"] += input_.nbytes
        return input_.copy_(torch.stack(self._exchange(input_)).sum(dim=0))

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        calls["all_gather"] += 1
        if self.world_size == 1:
            return input_
        carried["all_gather"] += input_.nbytes
        return torch.cat(self._exchange(input_), dim=dim)

    def reduce_scatter(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        calls["reduce_scatter"] += 1
        if self.world_size == 1:
            return input_
        carried["reduce_scatter"] += input_.nbytes
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
        carried["gather"] += input_.nbytes
        parts = self._exchange(input_)
        return torch.cat(parts, dim=dim) if self.rank_in_group == dst else None

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        calls["broadcast"] += 1
        if self.world_size == 1:
            return tensor
        carried["broadcast"] += tensor.nbytes
        return tensor.copy_(self._exchange(tensor)[src])

    def all_gatherv(
        self, input_: torch.Tensor | list[torch.Tensor], dim: int = 0, sizes: list[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        calls["all_gatherv"] += 1
        return super().all_gatherv(input_, dim, sizes)

    def reduce_scatterv(self, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None) -> torch.Tensor:
        calls["reduce_scatterv"] += 1
        if sizes is None or self.world_size == 1:
            return super().reduce_scatterv(input_, dim, sizes)
        start = sum(sizes[: self.rank_in_group])
        shares = [part.narrow(dim, start, sizes[self.rank_in_group]) for part in self._exchange(input_)]
        return torch.stack(shares).sum(dim=0, dtype=input_.dtype)

    def reduce_scatterv_into_output(
        self, input_: torch.Tensor, output: torch.Tensor, dim: int = -1, sizes: list[int] | None = None
    ) -> None:
        calls["reduce_scatterv_into_output"] += 1
        output.copy_(self.reduce_scatterv(input_, dim, sizes))

    def send(self, tensor: torch.Tensor, dst: int | None = None) -> None:
        calls["send"] += 1
        super().send(tensor, dst)

    def recv(self, size: Sequence[int], dtype: torch.dtype, src: int | None = None) -> torch.Tensor:
        calls["recv"] += 1
        return super().recv(size, dtype, src)

    def batch_isend_irecv(self, p2p_ops: list[dist.P2POp]) -> None:
        calls["batch_isend_irecv"] += 1
        super().batch_isend_irecv(p2p_ops)

    def dispatch_router_logits(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        calls["dispatch_router_logits"] += 1
        return super().dispatch_router_logits(*args, **kwargs)

    def dispatch(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        calls["dispatch"] += 1
        return super().dispatch(*args, **kwargs)

    def combine(self, hidden_states: torch.Tensor, is_sequence_parallel: bool = False) -> torch.Tensor:
        calls["combine"] += 1
        return super().combine(hidden_states, is_sequence_parallel)

    def combine_into_output(
        self, hidden_states: torch.Tensor, output: torch.Tensor, is_sequence_parallel: bool = False
    ) -> None:
        calls["combine_into_output"] += 1
        super().combine_into_output(hidden_states, output, is_sequence_parallel)

    def allocate_combine_input(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, is_sequence_parallel: bool = False
    ) -> torch.Tensor | None:
        """Any tensor will do."""
        calls["allocate_combine_input"] += 1
        return None

    def destroy(self) -> None:
        calls["destroy"] += 1
        super().destroy()

    def _exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, in rank order."""
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor, group=self.device_group)
        return parts
