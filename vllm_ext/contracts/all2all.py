"""The part of the communicator contract that is about experts on several ranks: tokens go there, results come back.

The engine has no expert-parallel layers of its own; a model that has them calls the communicator of a group ``ep:N``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from vllm_ext.contracts.group_member import GroupMember
from vllm_ext.errors import dotted_path


class All2AllManagerBase:
    """Carries tokens to experts and back, for the communicator of one group. vLLM: ``All2AllManagerBase``.

    A subclass implements :meth:`dispatch_router_logits`, :meth:`dispatch` and :meth:`combine`; arguments and results
    are those of :class:`ExpertCommunicator`, and so a tensor that is an argument is only read. One that a subclass
    lacks raises NotImplementedError with the class and the method in its text.

    Args:
        cpu_group: gloo group of the ranks among which the experts are spread.
        tcp_store_group: for groups that torch.distributed does not know of.
    """

    def __init__(self, cpu_group: dist.ProcessGroup, tcp_store_group: Any = None) -> None:
        self.cpu_group = cpu_group
        self.tcp_store_group = tcp_store_group
        self.rank = dist.get_rank(cpu_group)
        self.world_size = dist.get_world_size(cpu_group)

    def dispatch_router_logits(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[Any, ...]:
        """See :meth:`ExpertCommunicator.dispatch_router_logits`. vLLM: ``dispatch_router_logits``."""
        raise self._missing("dispatch_router_logits")

    def dispatch(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[Any, ...]:
        """See :meth:`ExpertCommunicator.dispatch`. vLLM: ``dispatch``."""
        raise self._missing("dispatch")

    def combine(self, hidden_states: torch.Tensor, is_sequence_parallel: bool = False) -> torch.Tensor:
        """See :meth:`ExpertCommunicator.combine`. vLLM: ``combine``."""
        raise self._missing("combine")

    def destroy(self) -> None:
        """Release what the manager holds; called once, by the communicator's. vLLM: ``destroy``."""

    def _missing(self, method: str) -> NotImplementedError:
        cls = type(self)
        return NotImplementedError(f"all2all manager {dotted_path(cls)} does not implement {method}()")


class ExpertCommunicator(GroupMember):
    """The expert-parallel collectives. Without a manager the experts are all here, and tokens stay where they are."""

    all2all_manager: All2AllManagerBase | None = None
    """Carries out :meth:`dispatch` and :meth:`combine`; a communicator's constructor sets it."""

    def dispatch_router_logits(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[Any, ...]:
        """Take tokens to the experts, before these are chosen. vLLM: ``dispatch_router_logits``.

        Args:
            hidden_states: ``[tokens, hidden]`` of this rank, floating-point; ranks may have different numbers of
                tokens.
            router_logits: ``[tokens, experts]``, floating-point.
            is_sequence_parallel: whether the ranks have parts of the same sequences.
            extra_tensors: more tensors ``[tokens, ...]``, of any dtype.

        Returns: the two, and a list of the extra ones where there were any, with the rows of all tokens that this
            rank's experts may work on.
        """
        tensors = (hidden_states, router_logits)
        if self.all2all_manager is not None:
            return self.all2all_manager.dispatch_router_logits(*tensors, is_sequence_parallel, extra_tensors)
        return tensors if extra_tensors is None else (*tensors, extra_tensors)

    def dispatch(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[Any, ...]:
        """Take tokens to the experts that were chosen for them. vLLM: ``dispatch``.

        Args:
            hidden_states: ``[tokens, hidden]`` of this rank, floating-point; ranks may have different numbers of
                tokens.
            topk_weights, topk_ids: ``[tokens, experts per token]``, floating-point and integer.
            is_sequence_parallel: as of :meth:`dispatch_router_logits`.
            extra_tensors: more tensors ``[tokens, ...]``, of any dtype.

        Returns: the three, and a list of the extra ones where there were any.
        """
        tensors = (hidden_states, topk_weights, topk_ids)
        if self.all2all_manager is not None:
            return self.all2all_manager.dispatch(*tensors, is_sequence_parallel, extra_tensors)
        return tensors if extra_tensors is None else (*tensors, extra_tensors)

    def combine(self, hidden_states: torch.Tensor, is_sequence_parallel: bool = False) -> torch.Tensor:
        """Bring what the experts made of the tokens back, and add it up. vLLM: ``combine``.

        Args:
            hidden_states: ``[all tokens, hidden]``, floating-point, the rows of the last dispatch.

        Returns: ``[tokens, hidden]`` of the same dtype, for this rank's tokens.
        """
        if self.all2all_manager is not None:
            return self.all2all_manager.combine(hidden_states, is_sequence_parallel)
        return hidden_states

    def combine_into_output(
        self, hidden_states: torch.Tensor, output: torch.Tensor, is_sequence_parallel: bool = False
    ) -> None:
        """:meth:`combine`, with the result in ``output``. vLLM: ``combine_into_output``.

        Args:
            output: ``[tokens, hidden]``, in any dtype that the result can be converted to; overwritten in place.

        Raises:
            CollectiveError: ``output`` has another shape than the result.
        """
        self._copy("combine_into_output", self.combine(hidden_states, is_sequence_parallel), output)

    def allocate_combine_input(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, is_sequence_parallel: bool = False
    ) -> torch.Tensor | None:
        """A buffer that experts should write the input of :meth:`combine` to. vLLM: ``allocate_combine_input``.

        Args:
            shape: lengths of the buffer's dimensions.

        Returns: a tensor of the shape ``shape`` and of ``dtype``; ``None`` where any tensor will do, as here.
        """
        return None
