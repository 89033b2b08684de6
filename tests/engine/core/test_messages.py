"""The messages between front end and engine core are plain data."""

from __future__ import annotations

import msgspec
from support.async_engine import greedy

from vllm_ext.engine.core.messages import (
    AbortRequests,
    EngineCoreDead,
    EngineCoreOutputs,
    EngineCoreRequest,
    FromCore,
    RequestRefused,
    RequestsFailed,
    Shutdown,
    ToCore,
    UtilityCall,
    UtilityResult,
)
from vllm_ext.engine.scheduling.request import EngineCoreOutput, TokenLogprobs


def test_messages_can_cross_the_border_of_a_process():
    request = EngineCoreRequest("a", [1, 2], greedy(3, stop=["x"], stop_token_ids=[7]), frozenset({0}), priority=-1)
    to_core = [request, AbortRequests(["a"], "stop"), UtilityCall(1, "get_stats", {"a": 1}), Shutdown()]
    output = EngineCoreOutput("a", [5], "stop", 7, num_cached_tokens=16)
    output.new_logprobs = TokenLogprobs([[5, 6]], [[-0.5, -1.0]], [1])
    from_core = [
        EngineCoreOutputs([output]),
        RequestRefused("a", "too long"),
        RequestsFailed(["a"], "broken"),
        UtilityResult(1, value=True),
        EngineCoreDead("broken"),
    ]

    for messages, kind in ((to_core, ToCore), (from_core, FromCore)):
        for message in messages:
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kind) == message
