"""The requests of an ``AsyncLLM`` in flight: their ids, their outputs, and who reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import count
from uuid import uuid4

from vllm_ext.contracts.sampling_params import RequestOutputKind
from vllm_ext.engine.arguments import check_request_id
from vllm_ext.engine.core.messages import EngineCoreRequest
from vllm_ext.engine.core.step_stats import StepStats
from vllm_ext.engine.metrics.manager import StatLoggerManager
from vllm_ext.engine.outputs.deltas import Deltas
from vllm_ext.engine.outputs.output_collector import RequestOutputCollector
from vllm_ext.engine.outputs.output_processor import OutputProcessor
from vllm_ext.engine.outputs.parallel_sampling import split_completions
from vllm_ext.engine.outputs.pooling_output_processor import PoolingOutputProcessor
from vllm_ext.engine.scheduling.request import EngineCoreOutput
from vllm_ext.errors import EngineError, InvalidRequest, innermost_cause


class AsyncRequests:
    """Used in one event loop only.

    The core knows a request by an id of its own: the user's may be used again as soon as the request has ended here,
    when the core may still be making a token for the one before.
    """

    def __init__(self, output_processor: OutputProcessor | PoolingOutputProcessor, stats: StatLoggerManager) -> None:
        self._stats = stats
        self._output_processor = output_processor
        self._collectors: dict[str, RequestOutputCollector] = {}
        """By internal id; who is here has not ended."""
        self._internal_ids: dict[str, str] = {}
        """The same requests by the user's id."""
        self._core_ids: dict[str, list[str]] = {}
        """What the core knows a request by, by internal id: one id, or one for each of several completions."""
        self._owners: dict[str, str] = {}
        """Internal ids by the core's."""
        self._next_id = count()

    def open(self, request_id: str | None) -> tuple[str, RequestOutputCollector]:
        """Reserve an id, or make one; returns the internal id, and where outputs will be.

        Raises:
            InvalidRequest: the id is no text, or in flight.
        """
        number = next(self._next_id)
        request_id = f"request-{uuid4().hex}" if request_id is None else request_id
        check_request_id(request_id)
        if request_id in self._internal_ids:
            raise InvalidRequest(f"a request with the id {request_id!r} is in flight; ids have to be unique")
        internal_id = f"{request_id}-{number}"
        collector = self._collectors[internal_id] = RequestOutputCollector(request_id)
        self._internal_ids[request_id] = internal_id
        return internal_id, collector

    def begin(
        self, internal_id: str, text: str | None, request: EngineCoreRequest, arrival: float
    ) -> list[EngineCoreRequest]:
        """Expect outputs of a request that came at ``arrival``, for stat loggers; returns what the core gets: nothing
        where it has ended meanwhile.
        """
        if internal_id not in self._collectors:
            return []
        parent, requests = split_completions(text, request)
        kind = None if request.sampling_params is None else request.sampling_params.output_kind
        if kind is RequestOutputKind.DELTA:
            self._collectors[internal_id].deltas = Deltas()
        self._output_processor.add_completions(text, requests, parent, final_only=kind is RequestOutputKind.FINAL_ONLY)
        self._core_ids[internal_id] = [begun.request_id for begun in requests]
        self._owners |= dict.fromkeys(self._core_ids[internal_id], internal_id)
        self._stats.begin(self._collectors[internal_id].request_id, requests, arrival)
        return requests

    def process_outputs(self, outputs: list[EngineCoreOutput], step_stats: StepStats | None = None) -> list[str]:
        """Hand the tokens of a step to their readers; returns, by the core's ids, those to end there, too."""
        stopped = self._process_outputs(outputs)
        self._stats.add_step(outputs, stopped, step_stats)
        return stopped

    def _process_outputs(self, outputs: list[EngineCoreOutput]) -> list[str]:
        try:
            processed = self._output_processor.process_outputs(outputs)
            for output in processed.request_outputs:
                collector = self._collectors[output.request_id]
                if output.finished:
                    self._forget(output.request_id)
                collector.put(output)
        except Exception as error:  # noqa: BLE001 - it ends the requests of this step, and their readers get it
            owners = self._in_flight(output.request_id for output in outputs)
            core_ids = [core_id for owner in owners for core_id in self._core_ids[owner]]
            self.fail_step(core_ids, f"the outputs of a step cannot be read: {innermost_cause(error)}")
            return core_ids
        return processed.stopped

    def request_ids(self) -> list[str]:
        """The users' ids of all requests that have not ended."""
        return list(self._internal_ids)

    def abort(self, request_ids: Iterable[str]) -> list[str]:
        """End requests by the users' ids, with a last output; returns what :meth:`close` does."""
        internal_ids = [self._internal_ids[i] for i in dict.fromkeys(request_ids) if i in self._internal_ids]
        last = {output.request_id: output for output in self._output_processor.abort_requests(internal_ids)}
        for internal_id in internal_ids:
            # One that is still being tokenized has no state to tell.
            output = last.get(internal_id) or self._output_processor.aborted_output(internal_id)
            self._collectors[internal_id].put(output)
        return self.close(internal_ids)

    def fail_step(self, core_ids: Collection[str], reason: str) -> list[str]:
        """As :meth:`fail`, of requests that the engine ended: the error has the users' ids of them."""
        request_ids = [self._collectors[internal_id].request_id for internal_id in self._in_flight(core_ids)]
        return self.fail(core_ids, EngineError(reason, request_ids=request_ids))

    def fail(self, core_ids: Collection[str], error: Exception) -> list[str]:
        """End requests, by the core's ids, whose readers get ``error``. Those that have ended here are passed over.

        Returns: other completions of theirs, by the core's ids, which it may still have.
        """
        others: list[str] = []
        for internal_id in self._in_flight(core_ids):
            self._collectors[internal_id].put_error(error)
            core_ids_of = self._core_ids.get(internal_id, ())
            if len(core_ids_of) > 1:
                others += sorted({*core_ids_of} - {*core_ids})
            if isinstance(error, InvalidRequest):
                self._stats.forget(core_ids_of)
            else:
                self._stats.abort(core_ids_of)
            self._output_processor.abort_requests([internal_id])
            self._forget(internal_id)
        return others

    def fail_all(self, error: Exception) -> None:
        """End all requests, whose readers get ``error``."""
        self.fail(list(self._collectors), error)

    def close(self, internal_ids: Iterable[str]) -> list[str]:
        """End requests that nobody reads any more; returns those that the core has to abort, by its own ids."""
        ended = [internal_id for internal_id in internal_ids if internal_id in self._collectors]
        core_ids = [core_id for internal_id in ended for core_id in self._core_ids.get(internal_id, ())]
        self._output_processor.abort_requests(ended)
        self._stats.abort(core_ids)
        for internal_id in ended:
            self._forget(internal_id)
        return core_ids

    def _in_flight(self, core_ids: Iterable[str]) -> list[str]:
        """Internal ids, each once, of the requests that have not ended; one that the core does not have is its own."""
        internal_ids = dict.fromkeys(self._owners.get(core_id, core_id) for core_id in core_ids)
        return [internal_id for internal_id in internal_ids if internal_id in self._collectors]

    def _forget(self, internal_id: str) -> None:
        collector = self._collectors.pop(internal_id)
        del self._internal_ids[collector.request_id]
        for core_id in self._core_ids.pop(internal_id, ()):
            del self._owners[core_id]
