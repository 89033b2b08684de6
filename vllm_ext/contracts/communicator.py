"""The communicator contract: collectives between the devices of one group.

The base class computes every collective with torch.distributed; a platform overrides what its hardware does better.
The embedded engine calls the communicator at any group size, so a size-one call must be cheap. Ranks in arguments are
ranks in the group. Unless a method says otherwise, all ranks of the group call it, in the same order, with tensors of
one shape and dtype.

In vLLM: ``vllm.distributed.device_communicators.base_device_communicator``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from vllm_ext.contracts.all2all import ExpertCommunicator

CONSTRUCTOR_KEYWORDS = ("cpu_group", "device", "device_group", "unique_name", "use_all2all")
"""What a group hands to the constructor of its communicator (vLLM's ``GroupCoordinator``, and ours)."""


class DeviceCommunicatorBase(ExpertCommunicator):
    """Collectives of one process group; its arguments are those of :class:`GroupMember`. vLLM:
    ``DeviceCommunicatorBase``.

    Tensors are on the communicator's device. A tensor that is an argument is only read, unless a method says otherwise.
    """

    # Collectives with equal shares --------------------------------------------------------------------------------

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        """Sum over the group, in place. vLLM: ``all_reduce``.

        Args:
            input_: of any shape and any dtype that numbers have; changed in place, it holds the sum afterwards.

        Returns: ``input_``.
        """
        if self.world_size == 1:
            return input_
        # gloo takes the memory of a view for that of the whole tensor.
        dense = input_.contiguous()
        dist.all_reduce(dense, group=self.device_group)
        return input_ if dense is input_ else input_.copy_(dense)

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Concatenate equal shares along ``dim``, in rank order. vLLM: ``all_gather``.

        Args:
            input_: this rank's share, of any shape and any dtype; only read.
            dim: a dimension of it, from the end where negative.

        Returns: a new tensor ``[..., ranks * share, ...]`` of the same dtype; ``input_`` itself in a group of one.

        Raises:
            CollectiveError: ``input_`` has no dimension ``dim``.
        """
        dim = self._dim("all_gather", input_, dim)
        if self.world_size == 1:
            return input_
        parts = input_.new_empty((self.world_size, *input_.shape))
        dist.all_gather(list(parts.unbind()), input_.contiguous(), group=self.device_group)
        return parts.movedim(0, dim).flatten(dim, dim + 1)

    def reduce_scatter(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Sum over the group, then keep this rank's equal share along ``dim``. vLLM: ``reduce_scatter``.

        Args:
            input_: a summand of any shape and any dtype that numbers have; only read.
            dim: a dimension of it, from the end where negative.

        Returns: a new contiguous tensor ``[..., size / ranks, ...]`` of the same dtype; ``input_`` itself in a group of
            one.

        Raises:
            CollectiveError: there is no dimension ``dim``, or its length is not divisible by the number of ranks.
        """
        dim = self._dim("reduce_scatter", input_, dim)
        if input_.shape[dim] % self.world_size:
            raise self._error("reduce_scatter", input_, f"dimension {dim} cannot be shared evenly")
        return self._reduce_scatter(input_, dim, [input_.shape[dim] // self.world_size] * self.world_size)

    def gather(self, input_: torch.Tensor, dst: int = 0, dim: int = -1) -> torch.Tensor | None:
        """Concatenate equal shares along ``dim`` on rank ``dst``. vLLM: ``gather``.

        Args:
            input_: this rank's share, of any shape and any dtype; only read.
            dim: a dimension of it, from the end where negative.

        Returns: on ``dst`` a new tensor ``[..., ranks * share, ...]`` of the same dtype, ``None`` on the others;
            ``input_`` itself in a group of one.

        Raises:
            CollectiveError: there is no dimension ``dim``, or no rank ``dst``.
        """
        dim = self._dim("gather", input_, dim)
        target = self._global_rank("gather", "dst", dst)
        if self.world_size == 1:
            return input_
        parts = input_.new_empty((self.world_size, *input_.shape)) if self.rank_in_group == dst else None
        into = None if parts is None else list(parts.unbind())
        dist.gather(input_.contiguous(), into, dst=target, group=self.device_group)
        return None if parts is None else parts.movedim(0, dim).flatten(dim, dim + 1)

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Fill ``tensor`` with that of rank ``src``. vLLM: ``broadcast``.

        Args:
            tensor: of any shape and any dtype; changed in place, but on ``src``.

        Returns: ``tensor``.

        Raises:
            CollectiveError: there is no rank ``src``.
        """
        source = self._global_rank("broadcast", "src", src)
        if self.world_size == 1:
            return tensor
        dense = tensor.contiguous()
        dist.broadcast(dense, src=source, group=self.device_group)
        return tensor if dense is tensor else tensor.copy_(dense)

    # Collectives with uneven shares -------------------------------------------------------------------------------

    def all_gatherv(
        self, input_: torch.Tensor | list[torch.Tensor], dim: int = 0, sizes: list[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Concatenate shares of uneven length along ``dim``. vLLM: ``all_gatherv``.

        Args:
            input_: this rank's share, of any shape and any dtype, or several that are gathered one after the other;
                only read.
            dim: the dimension whose length may differ, from the end where negative.
            sizes: the length of ``dim`` on each rank, the same list on all of them; equal lengths if omitted.

        Returns: a new tensor ``[..., sum(sizes), ...]`` of the same dtype, or a list of them; in a group of one the
            input itself.

        Raises:
            CollectiveError: there is no dimension ``dim``; ``sizes`` has not one entry per rank, or this rank's is not
                the length of its tensor.
        """
        if not isinstance(input_, torch.Tensor):
            return [self._all_gatherv(tensor, dim, sizes) for tensor in input_]
        return self._all_gatherv(input_, dim, sizes)

    def reduce_scatterv(self, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None) -> torch.Tensor:
        """Sum over the group, then keep this rank's share of ``sizes`` along ``dim``. vLLM: ``reduce_scatterv``.

        Args:
            input_: a summand of any shape and any dtype that numbers have; only read.
            dim: a dimension of it, from the end where negative.
            sizes: the length of each rank's share, the same list on all of them; equal lengths if omitted.

        Returns: a new contiguous tensor ``[..., sizes[rank], ...]`` of the same dtype; ``input_`` itself in a group of
            one.

        Raises:
            CollectiveError: there is no dimension ``dim``; ``sizes`` has not one entry per rank, or does not add up to
                the length of ``dim``.
        """
        if sizes is None:
            return self.reduce_scatter(input_, dim)
        dim = self._dim("reduce_scatterv", input_, dim)
        self._check_sizes("reduce_scatterv", input_, sizes)
        if sum(sizes) != input_.shape[dim]:
            raise self._error(
                "reduce_scatterv", input_, f"sizes {sizes} add up to {sum(sizes)}, which dimension {dim} has not"
            )
        return self._reduce_scatter(input_, dim, sizes)

    def reduce_scatterv_into_output(
        self, input_: torch.Tensor, output: torch.Tensor, dim: int = -1, sizes: list[int] | None = None
    ) -> None:
        """:meth:`reduce_scatterv`, with the result in ``output``. vLLM: ``reduce_scatterv_into_output``.

        Args:
            output: ``[..., sizes[rank], ...]``, the result's shape, in any dtype that this can be converted to;
                overwritten in place.

        Raises:
            CollectiveError: as :meth:`reduce_scatterv`, or ``output`` has another shape.
        """
        result = self.reduce_scatterv(input_, dim, sizes)
        self._copy("reduce_scatterv_into_output", result, output)

    # Point to point -----------------------------------------------------------------------------------------------

    def send(self, tensor: torch.Tensor, dst: int | None = None) -> None:
        """Send to rank ``dst``, by default the next one; returns when ``tensor`` may be reused. vLLM: ``send``.

        Args:
            tensor: of any shape and any dtype; only read.

        Raises:
            CollectiveError: there is no rank ``dst``, or it is this one.
        """
        target = self._peer("send", "dst", (self.rank_in_group + 1) % self.world_size if dst is None else dst)
        dist.send(tensor.contiguous(), dst=target, group=self.device_group)

    def recv(self, size: Sequence[int], dtype: torch.dtype, src: int | None = None) -> torch.Tensor:
        """Receive from rank ``src``, by default the previous one. vLLM: ``recv``.

        Args:
            size, dtype: lengths of the dimensions, and dtype, of what is sent.

        Returns: a new tensor of the shape ``size`` and of ``dtype``, on the communicator's device.

        Raises:
            CollectiveError: there is no rank ``src``, or it is this one.
        """
        source = self._peer("recv", "src", (self.rank_in_group - 1) % self.world_size if src is None else src)
        tensor = torch.empty(tuple(size), dtype=dtype, device=self.device)
        dist.recv(tensor, src=source, group=self.device_group)
        return tensor

    def batch_isend_irecv(self, p2p_ops: list[dist.P2POp]) -> None:
        """Carry out sends and receives together, so that no order among them can block. vLLM: ``batch_isend_irecv``.

        Args:
            p2p_ops: torch's descriptions; their peers are ranks of the default group. Each one's counterpart is in the
                list of another rank. May be empty.

        Returns once all are complete.
        """
        if p2p_ops:
            for work in dist.batch_isend_irecv(p2p_ops):
                work.wait()

    # Memory and life cycle ----------------------------------------------------------------------------------------

    def get_symmetric_memory_buffer(
        self, role: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor | None:
        """Memory that all ranks can reach, for ``role``. vLLM: ``get_symmetric_memory_buffer``.

        Args:
            shape: lengths of the buffer's dimensions.

        Returns: a tensor of the shape ``shape`` and of ``dtype``; ``None`` where there is no such memory, as here.
        """
        return None

    def suspend(self) -> None:
        """Give up device memory until :meth:`resume`; nothing to do here. vLLM: ``suspend``."""

    def resume(self) -> None:
        """Take back what :meth:`suspend` gave up. vLLM: ``resume``."""

    def checkpoint_prepare(self) -> None:
        """Get ready for the process to be frozen on disk; nothing to do here. vLLM: ``checkpoint_prepare``."""

    def checkpoint_restore(self) -> None:
        """Go on after the process came back from disk. vLLM: ``checkpoint_restore``."""

    def destroy(self) -> None:
        """Release what the communicator holds besides the groups, its ``all2all_manager`` too. Called once, at
        shutdown. vLLM: ``destroy``.
        """
        if self.all2all_manager is not None:
            self.all2all_manager.destroy()
            self.all2all_manager = None

    # What the methods above share ---------------------------------------------------------------------------------

    def _all_gatherv(self, tensor: torch.Tensor, dim: int, sizes: list[int] | None) -> torch.Tensor:
        if sizes is None:
            return self.all_gather(tensor, dim)
        dim = self._dim("all_gatherv", tensor, dim)
        self._check_sizes("all_gatherv", tensor, sizes)
        if tensor.shape[dim] != sizes[self.rank_in_group]:
            raise self._error(
                "all_gatherv", tensor, f"sizes {sizes} say {sizes[self.rank_in_group]} for dimension {dim} of this rank"
            )
        if self.world_size == 1:
            return tensor
        # Shares of one length, as gloo wants them; what was added is cut off again.
        padded = tensor.new_zeros((max(sizes), *tensor.movedim(dim, 0).shape[1:]))
        padded[: tensor.shape[dim]] = tensor.movedim(dim, 0)
        parts = padded.new_empty((self.world_size, *padded.shape))
        dist.all_gather(list(parts.unbind()), padded, group=self.device_group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).movedim(0, dim).contiguous()

    def _reduce_scatter(self, input_: torch.Tensor, dim: int, sizes: list[int]) -> torch.Tensor:
        if self.world_size == 1:
            return input_
        total = input_.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.device_group)
        start = sum(sizes[: self.rank_in_group])
        return total.narrow(dim, start, sizes[self.rank_in_group]).clone(memory_format=torch.contiguous_format)
