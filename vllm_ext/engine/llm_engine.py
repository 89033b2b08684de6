"""The engine with text at both ends: prompts in, request outputs out, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import RequestOutputKind, SamplingParams
from vllm_ext.contracts.stats import SchedulerStats
from vllm_ext.engine.arguments import check_call, check_request_id, check_sleep, check_tags, ids_of
from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.core.sleep_mode import check_sleep_mode
from vllm_ext.engine.inputs.input_processor import InputProcessor
from vllm_ext.engine.inputs.prompts import PromptType
from vllm_ext.engine.metrics.manager import StatLoggerManager
from vllm_ext.engine.outputs.deltas import Deltas
from vllm_ext.engine.outputs.parallel_sampling import split_completions
from vllm_ext.engine.outputs.pooling_output_processor import make_output_processor
from vllm_ext.engine.processes.cleanup import shut_down_on_error
from vllm_ext.engine.processes.forked import own_process_check
from vllm_ext.engine.scheduling.request import RequestStatus
from vllm_ext.errors import EngineError, InvalidRequest

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher


class LLMEngine:
    """Requests may be added and aborted between any two steps.

    Args:
        dispatcher: the platform's choices for one engine.

    Raises:
        ModelError, EngineError, PluginError: something about model, workers or plugins prevents the start.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.vllm_config = dispatcher.vllm_config
        self.input_processor = InputProcessor(dispatcher.vllm_config, dispatcher.platform, dispatcher.logits_processors)
        self.tokenizer = self.input_processor.tokenizer
        self.default_sampling_params = self.input_processor.default_sampling_params
        self._aborted: list[Any] = []
        self._deltas: dict[str, Deltas] = {}
        """Of requests whose outputs are to have what is new, and not all so far."""
        self._is_shut_down = False
        self._check_own_process = own_process_check()
        self.output_processor = make_output_processor(dispatcher.vllm_config.model_config, self.tokenizer)
        dispatcher.load_stat_loggers()
        self.engine_core = EngineCore(dispatcher)
        self.input_processor.set_supported(self.engine_core.capabilities)
        with shut_down_on_error(self.engine_core.shutdown):
            self._stats = StatLoggerManager(dispatcher)
        if self._stats.is_active:
            self.engine_core.record_stats()

    def add_request(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams | PoolingParams | None = None,
        *,
        priority: int = 0,
        final_only: bool = False,
    ) -> None:
        """Queue a request.

        Args:
            request_id: unique among the requests in flight.
            params: those of the model directory if omitted. With ``n`` above 1 the engine core has a request for each
                completion, and the outputs hold all of them.
            priority: lower values come first, where ``engine.scheduling_policy`` is ``priority``; else it has to be 0.
            final_only: give one output when the request ends, whatever the parameters' ``output_kind`` says.

        Raises:
            InvalidRequest: the prompt, or a parameter, cannot be served; nothing is changed.
            EngineError: the engine is shut down or sleeps, or the scheduler failed.
        """
        self._check_running()
        if self.engine_core.is_sleeping():
            raise EngineError("the engine sleeps, and nobody would compute a request; wake_up() first")
        check_request_id(request_id)
        arrival = self._stats.now()
        text, request = self.input_processor.process_inputs(request_id, prompt, params, priority)
        parent, children = split_completions(text, request)
        for taken in (request_id, *(child.request_id for child in children)):
            if self.output_processor.is_in_flight(taken):
                raise InvalidRequest(f"a request with the id {taken!r} is in flight; ids have to be unique")
        try:
            for child in children:
                # What is wrong with one of several completions is wrong with the first.
                self.engine_core.add_request(child.as_request())
        except EngineError:
            # That a scheduler fails may come with any of them.
            self.engine_core.abort_requests(child.request_id for child in children)
            raise
        kind = None if request.sampling_params is None else request.sampling_params.output_kind
        if kind is RequestOutputKind.DELTA and not final_only:
            self._deltas[request_id] = Deltas()
        final_only = final_only or kind is RequestOutputKind.FINAL_ONLY
        self.output_processor.add_completions(text, children, parent, final_only=final_only)
        self._stats.begin(request_id, children, arrival)

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """End requests. The next step gives their last outputs, with ``finish_reason`` ``abort``; ids that are not in
        flight are passed over.
        """
        ids = ids_of(request_ids)
        children = [child for i in ids for child in self.output_processor.child_ids(i)]
        self.engine_core.abort_requests(children)
        if children:
            self._stats.abort(children, self.engine_core.make_step_stats())
        self._aborted += self._as_wanted(self.output_processor.abort_requests(ids))

    def step(self) -> list[Any]:
        """Make one step.

        Returns: for each request that went on or ended, all that it has so far, or what its ``output_kind`` says: a
            :class:`RequestOutput`, or of a pooling model a :class:`PoolingRequestOutput`.

        Raises:
            EngineError: the step failed. The requests in flight are gone, as they are after an interrupt; new ones may
                be tried.
        """
        self._check_running()
        try:
            outputs = self.engine_core.step()
            processed = self.output_processor.process_outputs(outputs)
            self.engine_core.abort_requests(processed.stopped, RequestStatus.FINISHED_STOPPED)
            self._stats.add_step(outputs, processed.stopped, self.engine_core.take_step_stats())
        except BaseException as error:
            if isinstance(error, EngineError):
                error.request_ids = tuple(self.output_processor.parent_ids(error.request_ids))
            self.engine_core.abort_all()
            self.output_processor.clear()
            self._deltas.clear()
            self._stats.abort(None, self.engine_core.make_step_stats())
            raise
        aborted, self._aborted = self._aborted, []
        return aborted + self._as_wanted(processed.request_outputs)

    def has_unfinished_requests(self) -> bool:
        """Whether :meth:`step` has something to do; the last step may be one that gives no output."""
        return bool(self._aborted) or self.engine_core.has_requests()

    def reset_prefix_cache(self, *, reset_running_requests: bool = False) -> bool:
        """Forget what the KV cache holds for prompts to come.

        Args:
            reset_running_requests: preempt all running requests first; they are computed again.

        Returns: False, and nothing is changed, while requests use cache blocks.

        Raises:
            EngineError: the engine is shut down.
        """
        self._check_running()
        return self.engine_core.reset_prefix_cache(reset_running_requests=reset_running_requests)

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """End the requests in flight, and stop; see :meth:`LLM.sleep`. The next step gives their last outputs."""
        self._check_running()
        level = check_sleep(level, mode, ("abort",))
        check_sleep_mode(level, self.vllm_config.model_config)
        self.abort_request(self.output_processor.request_ids())
        if self.engine_core.sleep(level):
            self._stats.record_sleep_state(is_asleep=True, level=level)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Go on; see :meth:`LLM.wake_up`."""
        self._check_running()
        check_tags(tags)
        is_awake = self.engine_core.wake_up(tags)
        if is_awake:
            self._stats.record_sleep_state(is_asleep=False)
        return is_awake

    def is_sleeping(self) -> bool:
        """Whether no steps are made."""
        return self.engine_core.is_sleeping()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call a method of all workers; see :meth:`LLM.collective_rpc`."""
        self._check_running()
        check_call(method, timeout, args, kwargs)
        return self.engine_core.collective_rpc(method, timeout, args, kwargs)

    def start_profile(self, profile_prefix: str | None = None) -> None:
        """Begin to record; see :meth:`LLM.start_profile`."""
        self._check_running()
        self.engine_core.profile(True, profile_prefix)

    def stop_profile(self) -> None:
        """End what :meth:`start_profile` began; the traces are written."""
        self._check_running()
        self.engine_core.profile(False)

    def get_stats(self) -> SchedulerStats:
        """Load, preemptions and use of the KV cache, between two steps."""
        return self.engine_core.get_stats()

    def shutdown(self) -> None:
        """Stop the workers; may be called twice."""
        self._is_shut_down = True
        try:
            self.engine_core.shutdown()
        finally:
            self._stats.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def _as_wanted(self, outputs: list[Any]) -> list[Any]:
        """``outputs``, each with what is new alone where that is asked for."""
        if not self._deltas:
            return outputs
        told = [(self._deltas.get(output.request_id), output) for output in outputs]
        for output in outputs:
            if output.finished:
                self._deltas.pop(output.request_id, None)
        return [output if deltas is None else deltas.added_by(output) for deltas, output in told]

    def _check_running(self) -> None:
        self._check_own_process()
        if self._is_shut_down:
            raise EngineError("this engine is shut down; make a new one")
