"""What the scheduler asks of a worker in one step.

The fields are those of vLLM 0.32, so that a worker that is written for it finds what it reads. What this engine has
nothing for (speculative decoding, images, LoRA adapters, pipelines, transfer of the KV cache, grammars) is always empty
here, and can be left out by those who make one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams


@dataclass(slots=True)
class NewRequestData:
    """A request that the worker sees for the first time. vLLM: ``NewRequestData``."""

    req_id: str
    prompt_token_ids: list[int]
    """The prompt."""
    sampling_params: SamplingParams | None
    """``None`` for a pooling model."""
    block_ids: tuple[list[int], ...]
    """KV cache blocks by KV cache group, in sequence order. Where every layer has a sliding window, a block that none
    will read of has its place all the same, with any number; other requests may have that block, now or later."""
    num_computed_tokens: int
    """How many of ``prompt_token_ids`` need not be computed: the first of ``block_ids`` hold them, and may be shared
    with other requests, also with one whose tokens this very step computes. Always less than there are tokens."""
    num_output_tokens: int = 0
    """How many of ``prompt_token_ids`` were generated. An extension of vLLM's class; the engine's scheduler, which
    tells of a preempted request as resumed, has none here."""
    pooling_params: PoolingParams | None = None
    """What is wanted of the prompt, for a pooling model, with a ``task``; else ``None``."""

    mm_features: list[Any] = field(default_factory=list)
    """Always empty: the engine takes tokens only."""
    lora_request: Any = None
    """Always ``None``: the engine applies no adapters."""
    prompt_embeds: Any = None
    prompt_is_token_ids: list[bool] | None = None
    """Always ``None``, as for every prompt of tokens in vLLM."""
    prefill_token_ids: list[int] | None = None
    """Always ``None``, as vLLM has it unless its second model runner is used."""
    replay_start: int = 0

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)


@dataclass(slots=True)
class CachedRequestData:
    """Requests the worker already knows, column by column; first those that went on running, then those that were
    preempted and run again. vLLM: ``CachedRequestData``.
    """

    req_ids: list[str] = field(default_factory=list)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)
    """Blocks appended in this step by KV cache group; ``None`` where there are none. Of a resumed request all its
    blocks, instead of those it had."""
    num_computed_tokens: list[int] = field(default_factory=list)
    """Tokens that need not be computed. It begins anew for a resumed request, with those that are in the cache."""
    num_output_tokens: list[int] = field(default_factory=list)
    """Tokens generated before this step."""
    resumed_req_ids: set[str] = field(default_factory=set)
    """Those of ``req_ids`` that were preempted and run again, with the blocks in ``new_block_ids``."""
    all_token_ids: dict[str, list[int]] = field(default_factory=dict)
    """Prompt and generated tokens of those of ``req_ids`` that had no part in the step before, which is every resumed
    one."""
    new_token_ids: list[list[int]] = field(default_factory=list)
    """Always empty, as in vLLM without pipeline parallelism: the worker knows the tokens that it sampled."""

    @property
    def num_reqs(self) -> int:
        """How many requests there are. vLLM: ``num_reqs``."""
        return len(self.req_ids)

    def is_context_phase(self, req_id: str) -> bool:
        """Whether it is one of these and has no generated token yet. vLLM: ``is_context_phase``."""
        return req_id in self.req_ids and not self.num_output_tokens[self.req_ids.index(req_id)]

    @classmethod
    def make_empty(cls) -> Self:
        """No request. vLLM: ``make_empty``."""
        return cls()


@dataclass(slots=True)
class SchedulerOutput:
    """One step: who runs, with how many tokens, and whom the worker can forget. vLLM: ``SchedulerOutput``."""

    scheduled_new_reqs: list[NewRequestData]
    scheduled_cached_reqs: CachedRequestData
    num_scheduled_tokens: dict[str, int]
    """Tokens to compute by request id; a decode step has 1, a chunk of a prompt has more."""
    total_num_scheduled_tokens: int
    finished_req_ids: set[str] = field(default_factory=set)
    """Requests that ended since the last step; their state can be dropped, which has to come first: a new request may
    have the id of one of them."""
    preempted_req_ids: set[str] | None = None
    """Requests whose blocks were taken since the last step. They have no part in a step until they are among
    ``resumed_req_ids``, which may be in this very step where the preemption was before it."""

    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    num_invalid_spec_tokens: dict[str, int] | None = None
    num_spec_tokens_to_schedule: int = 0
    """Nothing is speculated."""
    scheduled_encoder_inputs: dict[str, list[int]] = field(default_factory=dict)
    scheduled_encoder_input_stats: Any = None
    free_encoder_mm_hashes: list[str] = field(default_factory=list)
    """There are no images or other inputs besides tokens."""
    num_common_prefix_blocks: list[int] = field(default_factory=list)
    """Always empty, as in vLLM, where it is kept for workers of others."""
    has_structured_output_requests: bool = False
    pending_structured_output_tokens: bool = False
    """No request has a grammar."""
    kv_connector_metadata: Any = None
    has_sync_kv_loads: bool = False
    kv_connector_block_state: Any = None
    ec_connector_metadata: Any = None
    ec_manager_metadata: Any = None
    aux_output_connector_metadata: Any = None
    """There are no connectors."""
    new_block_ids_to_zero: list[int] | None = None
    kv_cache_block_copies: list[Any] | None = None
    """A block may hold anything where no token was written; none is copied."""

    @classmethod
    def make_empty(cls) -> Self:
        """A step without tokens. vLLM: ``make_empty``."""
        return cls([], CachedRequestData(), {}, 0)
