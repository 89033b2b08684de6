"""Collectives over gloo, for devices whose memory is the host's."""

from __future__ import annotations

import torch
import torch.distributed as dist

from vllm_ext.contracts.communicator import DeviceCommunicatorBase


class GlooCommunicator(DeviceCommunicatorBase):
    """The base's collectives, with one flat output where gloo would need a list of parts."""

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        if self.world_size == 1:
            return input_
        flat = input_.new_empty((self.world_size, *input_.shape))
        dist.all_gather_into_tensor(flat, input_.contiguous().unsqueeze(0), group=self.device_group)
        dim %= input_.dim()
        gathered = flat.movedim(0, dim).contiguous()
        shape = list(input_.shape)
        shape[dim] *= self.world_size
        return gathered.view(shape)
