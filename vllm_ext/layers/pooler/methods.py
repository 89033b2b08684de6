"""Which states of a prompt's tokens stand for the prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm_ext.contracts.pooler import PoolingMetadata
from vllm_ext.contracts.vllm_config import PoolingType

PoolingMethod = Callable[[torch.Tensor, PoolingMetadata], torch.Tensor]
"""From hidden states ``[rows, hidden]`` to one row for each prompt, ``[prompts, hidden]``."""


def last_pool(hidden_states: torch.Tensor, metadata: PoolingMetadata) -> torch.Tensor:
    """The last token's state."""
    return hidden_states.index_select(0, metadata.query_start_loc[1:] - 1)


def cls_pool(hidden_states: torch.Tensor, metadata: PoolingMetadata) -> torch.Tensor:
    """The first token's state."""
    return hidden_states.index_select(0, metadata.query_start_loc[:-1])


def mean_pool(hidden_states: torch.Tensor, metadata: PoolingMetadata) -> torch.Tensor:
    """The mean of all tokens' states, in float32."""
    lens = metadata.query_start_loc.diff()
    prompts = torch.arange(len(lens), device=lens.device).repeat_interleave(lens)
    sums = hidden_states.new_zeros((len(lens), hidden_states.shape[1]), dtype=torch.float32)
    return sums.index_add_(0, prompts, hidden_states.float()) / lens.unsqueeze(1)


POOLING_METHODS: dict[PoolingType, PoolingMethod] = {"LAST": last_pool, "CLS": cls_pool, "MEAN": mean_pool}
"""By name in the settings."""
