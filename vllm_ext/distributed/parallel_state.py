"""Process groups of an engine, and how its layers find them while they are built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.errors import EngineError

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher


class GroupCoordinator:
    """Ranks that compute together: a group for device tensors, a gloo group for host tensors, a communicator.

    Args:
        unique_name: e.g. ``tp:0``.
        ranks: members, as ranks of the default process group; this process is one of them. Only members call.
        device: where this rank's tensors live.
        dispatcher: names the communicator class and the backend of the device group.
    """

    def __init__(self, unique_name: str, ranks: list[int], device: torch.device, dispatcher: Dispatcher) -> None:
        self.unique_name = unique_name
        self.ranks = ranks
        self.device = device
        self.world_size = len(ranks)
        self.rank_in_group = ranks.index(dist.get_rank())
        backend = dispatcher.platform.dist_backend or "gloo"
        self.cpu_group = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        self.device_group = self.cpu_group
        try:
            if backend != "gloo":
                self.device_group = dist.new_group(ranks, backend=backend, use_local_synchronization=True)
            self.communicator: DeviceCommunicatorBase = dispatcher.communicator_factory(
                cpu_group=self.cpu_group,
                device=device,
                device_group=self.device_group,
                unique_name=unique_name,
                use_all2all=False,
            )
        except BaseException:
            self._destroy_groups()
            raise

    def destroy(self) -> None:
        """Release the communicator and the groups; the object is of no use afterwards."""
        try:
            self.communicator.destroy()
        finally:
            self._destroy_groups()

    def _destroy_groups(self) -> None:
        for group in {self.cpu_group, self.device_group}:
            if dist.is_initialized():
                dist.destroy_process_group(group)


def init_distributed_environment(world_size: int, rank: int, init_method: str, backend: str = "gloo") -> list[int]:
    """Start torch.distributed unless it runs already; returns the engine's ranks in the default process group.

    An engine of one process needs no network: it starts on a store in memory, or joins whatever group its process is
    in already as a member of its own. The default group stays for further engines of the process.

    Raises:
        EngineError: the process is part of a default group of another size than this engine's.
    """
    if not dist.is_initialized():
        if world_size == 1:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        else:
            dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world_size)
    if world_size == 1:
        return [dist.get_rank()]
    if dist.get_world_size() != world_size:
        raise EngineError(
            f"an engine of {world_size} processes cannot start here: torch.distributed already runs in this process "
            f"with {dist.get_world_size()}. Use a process for each engine"
        )
    return list(range(world_size))


_tp_group: ContextVar[GroupCoordinator | None] = ContextVar("vllm_ext_tp_group", default=None)


@contextmanager
def use_tp_group(group: GroupCoordinator | None) -> Iterator[None]:
    """Make ``group`` the tensor-parallel group of the layers built inside the block."""
    token = _tp_group.set(group)
    try:
        yield
    finally:
        _tp_group.reset(token)


def get_tp_group() -> GroupCoordinator:
    """The tensor-parallel group of the engine being built; RuntimeError outside of one."""
    group = _tp_group.get()
    if group is None:
        raise RuntimeError("no engine is being built here: layers are constructed inside use_tp_group(...)")
    return group
