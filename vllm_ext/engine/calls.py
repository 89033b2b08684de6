"""Several calls share one engine: each gets the outputs of its own requests, whoever makes the step."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import RLock
from typing import Any

from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm_engine import LLMEngine
from vllm_ext.errors import EngineError, InvalidRequest


@dataclass(slots=True, eq=False)
class Call:
    """Some requests, and those of their outputs that nobody has taken yet."""

    prompts: list[Any]
    params: Sequence[SamplingParams | PoolingParams]
    request_ids: list[str]
    priorities: list[int]
    outputs: deque[Any] = field(default_factory=deque)
    error: BaseException | None = None
    """What broke off a step that another call made; it ended the requests of this call too."""


class Calls:
    """The calls in flight on ``engine``, which nobody else may step. They may come from several threads."""

    def __init__(self, engine: LLMEngine) -> None:
        self._turn, self._pid = RLock(), os.getpid()
        self._engine = engine
        self._next_id = count()
        self._call_of: dict[str, Call] = {}
        """Calls by the ids of their requests in flight."""

    @property
    def turn(self) -> RLock:
        """Whoever touches the engine holds it, so that a step is one thread's. Reentrant, because a stream that nobody
        holds any more is closed, and its requests aborted, wherever its thread stands.
        """
        if os.getpid() != self._pid:
            # In a forked copy, a thread that is not there may hold it.
            self._turn, self._pid = RLock(), os.getpid()
        return self._turn

    def make_call(
        self, prompts: list[Any], params: Sequence[SamplingParams | PoolingParams], priorities: list[int]
    ) -> Call:
        """A call for as many ``prompts`` as ``params``; request ids ascend with the order of the prompts."""
        return Call(prompts, params, [str(next(self._next_id)) for _ in prompts], priorities)

    def run(self, call: Call, *, final_only: bool) -> Generator[Any, None, None]:
        """The outputs of ``call`` as they come. Whatever ends the generator ends the call's requests.

        Raises:
            InvalidRequest: a prompt cannot be served; the text has its position, and no prompt is started.
            EngineError: a step failed.
        """
        try:
            with self.turn:
                self._add_requests(call, final_only)
            num_unfinished = len(call.request_ids)
            while num_unfinished:
                output = self._next_output(call)
                num_unfinished -= output.finished
                yield output
            with self.turn:
                if not self._call_of:
                    self._settle()
        finally:
            with self.turn:
                self._abort(call)

    def _add_requests(self, call: Call, final_only: bool) -> None:
        for index, (request_id, prompt) in enumerate(zip(call.request_ids, call.prompts, strict=True)):
            try:
                self._engine.add_request(
                    request_id, prompt, call.params[index], priority=call.priorities[index], final_only=final_only
                )
            except InvalidRequest as error:
                raise InvalidRequest(f"prompt {index}: {error}") from error
            self._call_of[request_id] = call

    def _next_output(self, call: Call) -> Any:
        while True:
            # Between two steps another thread may have its turn, and add its requests.
            with self.turn:
                if call.outputs:
                    return call.outputs.popleft()
                self._step_for(call)

    def _step_for(self, call: Call) -> None:
        """Make a step, and hand its outputs to the calls that they belong to."""
        if call.error is not None:
            raise EngineError(
                f"the requests of this call were ended by a step of another call that broke off: {call.error!r}"
            ) from call.error
        if not self._engine.has_unfinished_requests():
            raise EngineError("the last outputs of this call were lost when another call was interrupted")
        try:
            outputs = self._engine.step()
        except BaseException as error:
            for other in self._call_of.values():
                other.error = error
            self._call_of.clear()
            raise
        for output in outputs:
            # The last outputs of aborted requests have no owner any more.
            if (owner := self._call_of.get(output.request_id)) is not None:
                owner.outputs.append(output)
                if output.finished:
                    del self._call_of[output.request_id]

    def _settle(self) -> None:
        """Nothing is in flight any more: let the workers know who has ended."""
        if self._engine.has_unfinished_requests():
            self._engine.step()

    def _abort(self, call: Call) -> None:
        self._engine.abort_request([i for i in call.request_ids if self._call_of.pop(i, None) is not None])
