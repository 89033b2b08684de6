"""What the scheduler asks of a worker in one step."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams


@dataclass(slots=True)
class NewRequestData:
    """A request that the worker sees for the first time, or again after a preemption."""

    req_id: str
    prompt_token_ids: list[int]
    """All tokens known so far: the prompt, and after a preemption the tokens generated before it."""
    sampling_params: SamplingParams | None
    """``None`` for a pooling model."""
    block_ids: tuple[list[int], ...]
    """KV cache blocks by KV cache group, in sequence order. Where every layer has a sliding window, a block that none
    will read of has its place all the same, with any number; other requests may have that block, now or later."""
    num_computed_tokens: int
    """How many of ``prompt_token_ids`` need not be computed: the first of ``block_ids`` hold them, and may be shared
    with other requests, also with one whose tokens this very step computes. Always less than there are tokens."""
    num_output_tokens: int = 0
    """How many of ``prompt_token_ids`` were generated (only after a preemption)."""
    pooling_params: PoolingParams | None = None
    """What is wanted of the prompt, for a pooling model, with a ``task``; else ``None``."""


@dataclass(slots=True)
class CachedRequestData:
    """Requests the worker already knows, column by column (all columns have the same length)."""

    req_ids: list[str] = field(default_factory=list)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)
    """Blocks appended in this step by KV cache group; ``None`` where there are none."""
    num_computed_tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class SchedulerOutput:
    """One step: who runs, with how many tokens, and whom the worker can forget."""

    scheduled_new_reqs: list[NewRequestData]
    scheduled_cached_reqs: CachedRequestData
    num_scheduled_tokens: dict[str, int]
    """Tokens to compute by request id; a decode step has 1, a chunk of a prompt has more."""
    total_num_scheduled_tokens: int
    finished_req_ids: set[str] = field(default_factory=set)
    """Requests that ended (or were preempted) since the last step; their state can be dropped, which has to come first:
    one that was preempted may be among ``scheduled_new_reqs`` again."""
