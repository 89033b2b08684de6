"""The pooler contract: from the states of a prompt's tokens to one result.

In vLLM: ``vllm.model_executor.layers.pooler``.

A pooling model is an ``nn.Module`` with ``is_pooling_model = True``, the methods of :data:`POOLING_METHODS`, and a
:class:`Pooler` as its attribute ``pooler``. A tensor that is an argument is only read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vllm_ext.contracts.pooling_params import PoolingParams, PoolingTask

if TYPE_CHECKING:
    import torch

POOLING_METHODS = ("embed_input_ids", "forward", "load_weights")


@dataclass(frozen=True, slots=True)
class PoolingMetadata:
    """The prompts that are complete in one step. vLLM: ``PoolingMetadata``."""

    pooling_params: list[PoolingParams]
    """Of each prompt; ``task`` is never ``None``."""
    prompt_lens: torch.Tensor
    """int64 ``[prompts]``, on the device: tokens of each prompt."""
    query_start_loc: torch.Tensor
    """int64 ``[prompts + 1]``, on the device: prompt ``i`` has the rows ``[loc[i], loc[i + 1])`` of the hidden states,
    which are those of its last tokens; of all of them where the pooler needs them."""


@runtime_checkable
class Pooler(Protocol):
    """What a pooling model has as ``pooler``; an ``nn.Module``. vLLM: ``Pooler``."""

    def get_supported_tasks(self) -> frozenset[PoolingTask]:
        """What the model can be asked for."""

    def needs_all_tokens(self, task: PoolingTask) -> bool:
        """Whether the states of all tokens are needed, and not only the last one's. An extension of vLLM's contract."""

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        """The results.

        Args:
            hidden_states: ``[rows, hidden]`` in the model's dtype, as the model's ``forward`` returned them.
            pooling_metadata: which rows are whose, and what is wanted of them.

        Returns: float32, one tensor for each prompt: ``[dimensions]`` or ``[classes]``, with a first dimension
            ``[tokens]`` for tasks that are about tokens.
        """
