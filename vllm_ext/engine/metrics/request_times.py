"""What the front end knows for stat loggers: what the steps mean for each request, from its arrival to its end."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from vllm_ext.contracts.outputs import FinishReason
from vllm_ext.contracts.stats import FinishedRequestStats, IterationStats
from vllm_ext.engine.core.messages import EngineCoreRequest
from vllm_ext.engine.core.step_stats import EngineCoreEvents
from vllm_ext.engine.scheduling.request import EngineCoreOutput


@dataclass(slots=True, eq=False)
class _Prompt:
    """What the completions of one prompt have in common."""

    request_id: str
    arrival: float
    n: int
    num_unfinished: int
    longest: int = 0
    """Tokens of the longest completion that has ended."""


@dataclass(slots=True, eq=False)
class _Times:
    """One request in flight; times are ``None`` until it got there."""

    prompt: _Prompt
    num_prompt_tokens: int
    max_tokens: int | None
    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    num_tokens: int = 0
    num_cached_tokens: int = 0


class RequestTimes:
    """The requests in flight, by the engine core's ids. All times are in seconds of one clock."""

    def __init__(self) -> None:
        self._requests: dict[str, _Times] = {}

    def begin(self, request_id: str, requests: Sequence[EngineCoreRequest], arrival: float) -> None:
        """A prompt arrived; there is a core request for each of its completions."""
        prompt = _Prompt(request_id, arrival, len(requests), len(requests))
        for request in requests:
            num_prompt_tokens, params = len(request.prompt_token_ids), request.sampling_params
            max_tokens = None if params is None else params.max_tokens
            self._requests[request.request_id] = _Times(prompt, num_prompt_tokens, max_tokens)

    def note_events(self, events: EngineCoreEvents) -> None:
        """Take the core's times. Being admitted again, after a preemption, changes nothing."""
        for request_id, time in events.queued.items():
            if (times := self._requests.get(request_id)) is not None:
                times.queued = time
        for request_id, time in events.scheduled.items():
            if (times := self._requests.get(request_id)) is not None and times.scheduled is None:
                times.scheduled = time

    def add_step(
        self,
        outputs: Iterable[EngineCoreOutput],
        stopped: Container[str],
        token_time: float,
        now: float,
        stats: IterationStats,
    ) -> None:
        """Enter what a step brought into ``stats``.

        Args:
            outputs: of the core; those of requests that are not in flight any more are passed over.
            stopped: those that a stop string ended.
            token_time: when the core had the tokens.
            now: when they were read here.
        """
        for output in outputs:
            times = self._requests.get(output.request_id)
            if times is None:
                continue
            if output.new_token_ids:
                self._add_tokens(times, output, token_time, now, stats)
            elif output.pooled is not None:
                # What pools has no tokens of its own: its prompt is what it did.
                stats.num_prompt_tokens += times.num_prompt_tokens
                times.num_cached_tokens = output.num_cached_tokens
            reason = "stop" if output.request_id in stopped else output.finish_reason
            if reason is not None:
                del self._requests[output.request_id]
                _finish(times, reason, now, stats)

    def abort(self, request_ids: Iterable[str], now: float, stats: IterationStats) -> None:
        """End requests from outside; ids that are not in flight are passed over."""
        for request_id in request_ids:
            if (times := self._requests.pop(request_id, None)) is not None:
                _finish(times, "abort", now, stats)

    def ids(self) -> list[str]:
        """Of all in flight."""
        return list(self._requests)

    def _add_tokens(
        self, times: _Times, output: EngineCoreOutput, token_time: float, now: float, stats: IterationStats
    ) -> None:
        num_tokens = len(output.new_token_ids)
        stats.num_generation_tokens += num_tokens
        if times.first_token is None:
            stats.num_prompt_tokens += times.num_prompt_tokens
            stats.time_to_first_tokens_iter.append(now - times.prompt.arrival)
            times.first_token = token_time
        else:
            stats.inter_token_latencies_iter.append(token_time - times.last_token)
        times.last_token = token_time
        times.num_tokens += num_tokens
        times.num_cached_tokens = output.num_cached_tokens


def _finish(times: _Times, reason: FinishReason, now: float, stats: IterationStats) -> None:
    """Enter a request that has ended. One that did not get far was where it was until now."""
    prompt = times.prompt
    scheduled = now if times.scheduled is None else times.scheduled
    first_token = max(scheduled, now) if times.first_token is None else times.first_token
    last_token = first_token if times.first_token is None else times.last_token
    decode_time, num_further = last_token - first_token, times.num_tokens - 1
    stats.finished_requests.append(
        FinishedRequestStats(
            finish_reason=reason,
            request_id=prompt.request_id,
            e2e_latency=now - prompt.arrival,
            num_prompt_tokens=times.num_prompt_tokens,
            num_generation_tokens=times.num_tokens,
            max_tokens_param=times.max_tokens,
            queued_time=scheduled - (prompt.arrival if times.queued is None else times.queued),
            prefill_time=first_token - scheduled,
            inference_time=last_token - scheduled,
            decode_time=decode_time,
            mean_time_per_output_token=decode_time / num_further if num_further > 0 else 0.0,
            num_cached_tokens=times.num_cached_tokens,
        )
    )
    prompt.num_unfinished -= 1
    prompt.longest = max(prompt.longest, times.num_tokens)
    if not prompt.num_unfinished:
        stats.max_num_generation_tokens_iter.append(prompt.longest)
        stats.n_params_iter.append(prompt.n)
