"""What passes between an engine's front end and its core: plain data, so that a process may lie between them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core.step_stats import StepStats
from vllm_ext.engine.scheduling.request import EngineCoreOutput, Request

UtilityMethod = Literal[
    "reset_prefix_cache",
    "check_health",
    "get_stats",
    "check_integrity",
    "collective_rpc",
    "profile",
    "sleep",
    "wake_up",
    "is_sleeping",
]
"""Methods of the core that the front end may call between two steps."""


class Capabilities(msgspec.Struct, frozen=True):
    """What the workers can be asked for."""

    sampling_params: frozenset[str]
    """Those that they act on."""
    tasks: tuple[str, ...]
    whole_prompt_tasks: tuple[str, ...] = ()
    """Tasks for which nothing of a prompt may come from the prefix cache."""


class EngineCoreRequest(msgspec.Struct, tag=True):
    """To the core: serve this request."""

    request_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams | None
    eos_token_ids: frozenset[int]
    priority: int = 0
    pooling_params: PoolingParams | None = None

    def as_request(self) -> Request:
        """The request as the scheduler wants it."""
        return Request(
            self.request_id,
            self.prompt_token_ids,
            self.sampling_params,
            self.eos_token_ids,
            self.priority,
            self.pooling_params,
        )


class AbortRequests(msgspec.Struct, tag=True):
    """To the core: these requests have ended, by a stop string or because nobody wants them any more."""

    request_ids: list[str]
    finish_reason: Literal["stop", "abort"] = "abort"


class UtilityCall(msgspec.Struct, tag=True):
    """To the core: call one of its methods; the answer carries the same ``call_id``."""

    call_id: int
    method: UtilityMethod
    kwargs: dict[str, Any] = {}


class RecordStats(msgspec.Struct, tag=True):
    """To the core: from now on say of each step what stat loggers are told."""


class Shutdown(msgspec.Struct, tag=True):
    """To the core: stop after the step that is running."""


class EngineCoreOutputs(msgspec.Struct, tag=True):
    """From the core: what one step brought."""

    outputs: list[EngineCoreOutput]
    step_stats: StepStats | None = None
    """After :class:`RecordStats`; such a step may have no outputs."""


class RequestRefused(msgspec.Struct, tag=True):
    """From the core: this request cannot be served, and why; it was not started."""

    request_id: str
    reason: str


class RequestsFailed(msgspec.Struct, tag=True):
    """From the core: a step broke off and ended these requests, or the scheduler failed to queue one; others may be
    tried."""

    request_ids: list[str]
    reason: str


class UtilityResult(msgspec.Struct, tag=True):
    """From the core: what a method returned, as plain data, or why it failed."""

    call_id: int
    value: Any = None
    failure: str | None = None


class EngineCoreDead(msgspec.Struct, tag=True):
    """From the core: it has stopped though nobody asked for it; nothing can be served any more."""

    reason: str


ToCore: TypeAlias = EngineCoreRequest | AbortRequests | UtilityCall | RecordStats | Shutdown
FromCore: TypeAlias = EngineCoreOutputs | RequestRefused | RequestsFailed | UtilityResult | EngineCoreDead
