"""Process groups of an engine, and how its layers find them while they are built."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.dispatch.dispatcher import Dispatcher, find_current_dispatcher
from vllm_ext.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor


TP_GROUP = "tp:0"

_making_groups = threading.Lock()
"""Engines may start in several threads, and torch counts groups."""


class GroupCoordinator:
    """Ranks that compute together: a group for device tensors, a gloo group for host tensors, a communicator.

    The methods for collectives are the communicator's, at any size of the group; code that runs in each step binds
    ``communicator.all_reduce`` and the like once. vLLM: ``GroupCoordinator``.

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
        self.cpu_group = _new_group(ranks, "gloo")
        self.device_group = self.cpu_group
        try:
            if backend != "gloo":
                self.device_group = _new_group(ranks, backend)
            self.communicator: DeviceCommunicatorBase = dispatcher.communicator_factory(
                cpu_group=self.cpu_group,
                device=device,
                device_group=self.device_group,
                unique_name=unique_name,
                use_all2all=unique_name.partition(":")[0] == "ep",
            )
        except BaseException:
            self._destroy_groups()
            raise
        self._groups = dispatcher.groups
        self._groups[unique_name] = self

    @property
    def device_communicator(self) -> DeviceCommunicatorBase:
        """vLLM's name for ``communicator``."""
        return self.communicator

    def all_reduce(self, input_: Tensor) -> Tensor:
        """The sum over the ranks, as :meth:`DeviceCommunicatorBase.all_reduce`; may be ``input_`` itself."""
        return self.communicator.all_reduce(input_)

    def all_gather(self, input_: Tensor, dim: int = -1) -> Tensor:
        """All ranks' inputs side by side along ``dim``, as :meth:`DeviceCommunicatorBase.all_gather`."""
        return self.communicator.all_gather(input_, dim)

    def all_gatherv(
        self, input_: Tensor | list[Tensor], dim: int = 0, sizes: list[int] | None = None
    ) -> Tensor | list[Tensor]:
        """The same of inputs of uneven ``sizes`` along ``dim``, as :meth:`DeviceCommunicatorBase.all_gatherv`."""
        return self.communicator.all_gatherv(input_, dim, sizes)

    def reduce_scatter(self, input_: Tensor, dim: int = -1) -> Tensor:
        """This rank's slice of the sum along ``dim``, as :meth:`DeviceCommunicatorBase.reduce_scatter`."""
        return self.communicator.reduce_scatter(input_, dim)

    def reduce_scatterv(self, input_: Tensor, dim: int = -1, sizes: list[int] | None = None) -> Tensor:
        """The same with slices of uneven ``sizes``, as :meth:`DeviceCommunicatorBase.reduce_scatterv`."""
        return self.communicator.reduce_scatterv(input_, dim, sizes)

    def gather(self, input_: Tensor, dst: int = 0, dim: int = -1) -> Tensor | None:
        """All inputs side by side on rank ``dst`` of the group; ``None`` on the others."""
        return self.communicator.gather(input_, dst, dim)

    def broadcast(self, input_: Tensor, src: int = 0) -> Tensor:
        """Rank ``src``'s tensor, written into ``input_`` on the others."""
        return self.communicator.broadcast(input_, src)

    def send(self, tensor: Tensor, dst: int | None = None) -> None:
        """Send to rank ``dst`` of the group, by default the next one; waits until it is taken."""
        self.communicator.send(tensor, dst)

    def recv(self, size: Sequence[int], dtype: torch.dtype, src: int | None = None) -> Tensor:
        """A new tensor of shape ``size`` from rank ``src`` of the group, by default the one before."""
        return self.communicator.recv(size, dtype, src)

    def dispatch_router_logits(self, hidden_states: Tensor, router_logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Tokens and router logits of all ranks, as
        :meth:`DeviceCommunicatorBase.dispatch_router_logits`.
        """
        return self.communicator.dispatch_router_logits(hidden_states, router_logits, *args, **kwargs)

    def dispatch(self, hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Tokens of all ranks and their experts, as :meth:`DeviceCommunicatorBase.dispatch`."""
        return self.communicator.dispatch(hidden_states, topk_weights, topk_ids, *args, **kwargs)

    def combine(self, hidden_states: Tensor, is_sequence_parallel: bool = False) -> Tensor:
        """This rank's tokens out of the experts' results, as :meth:`DeviceCommunicatorBase.combine`."""
        return self.communicator.combine(hidden_states, is_sequence_parallel)

    def barrier(self) -> None:
        """Wait until all ranks of the group are here."""
        dist.barrier(group=self.cpu_group)

    def destroy(self) -> None:
        """Release the communicator and the groups; the object is of no use afterwards."""
        if self._groups.get(self.unique_name) is self:
            del self._groups[self.unique_name]
        try:
            self.communicator.destroy()
        finally:
            self._destroy_groups()

    def _destroy_groups(self) -> None:
        for group in {self.cpu_group, self.device_group}:
            if dist.is_initialized():
                dist.destroy_process_group(group)


def _new_group(ranks: list[int], backend: str) -> Any:
    """A group of torch's, which only its members make.

    torch names one whose members agree among themselves by how many groups there are, which is the name of an older one
    once another has ended; so all ranks make it where they are all members.
    """
    everybody = len(ranks) == dist.get_world_size()
    with _making_groups:
        return dist.new_group(ranks, backend=backend, use_local_synchronization=not everybody)


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
            store, rank, world_size = next(rendezvous(init_method, rank, world_size))
            # Who waits for the others can see which of them have come.
            store.set(joined_key(rank), "")
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    if world_size == 1:
        return [dist.get_rank()]
    if dist.get_world_size() != world_size:
        raise EngineError(
            f"an engine of {world_size} processes cannot start here: torch.distributed already runs in this process "
            f"with {dist.get_world_size()}. Use a process for each engine"
        )
    return list(range(world_size))


def joined_key(rank: int) -> str:
    """What a rank leaves in the store where the ranks find each other, when it begins to wait for the others."""
    return f"vllm_ext/joined/{rank}"


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
    """The tensor-parallel group of the engine that is being built or steps here; RuntimeError outside of one."""
    group = _tp_group.get()
    if group is None and (dispatcher := find_current_dispatcher()) is not None:
        group = dispatcher.groups.get(TP_GROUP)
    if group is None:
        raise RuntimeError("no engine is active here: layers are constructed inside use_tp_group(...)")
    return group
