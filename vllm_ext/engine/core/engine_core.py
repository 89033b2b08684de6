"""The engine core: it starts the executor up, and makes steps: schedule, execute, update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm_ext.contracts.kv_cache import KVCacheConfig
from vllm_ext.contracts.pooling_params import POOLING_TASKS
from vllm_ext.contracts.stats import SchedulerStats
from vllm_ext.dispatch.blame import whose_code
from vllm_ext.dispatch.naming_code import NamingCode, platform_code
from vllm_ext.engine.core.messages import Capabilities
from vllm_ext.engine.core.sleep_mode import SleepMode, check_sleep_mode
from vllm_ext.engine.core.step_stats import StepRecorder, StepStats
from vllm_ext.engine.executors.worker_calls import name_of_method
from vllm_ext.engine.processes.cleanup import shut_down_on_error
from vllm_ext.engine.scheduling.kv_cache_config import (
    common_layout,
    common_spec,
    make_kv_cache_config,
    request_capacity,
)
from vllm_ext.engine.scheduling.request import EngineCoreOutput, Request, RequestStatus
from vllm_ext.errors import (
    EngineError,
    InvalidRequest,
    VllmExtError,
    dotted_path,
    innermost_cause,
    listing,
    message_of,
)

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher

logger = logging.getLogger(__name__)


class EngineCore:
    """Requests in, tokens out. It knows token ids only; text is the business of those in front of it.

    Args:
        dispatcher: gives the configuration and the executor; no platform is looked up here.

    Raises:
        EngineError: the workers cannot be started, or their KV caches do not fit together.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.vllm_config = dispatcher.vllm_config
        self._platform = dispatcher.platform
        self._platform_name = dispatcher.platform_name
        self._bound_plan = dispatcher.bound_plan
        self._clock = dispatcher.clock
        self._recorder: StepRecorder | None = None
        # What is wrong with the scheduler is said before a model is loaded.
        dispatcher.scheduler_cls()
        with self._worker_code("to start"):
            self.executor = dispatcher.executor_factory()
        with shut_down_on_error(self.executor.shutdown):
            with self._worker_code("to prepare its KV cache"):
                self.kv_cache_config = self._initialize_kv_cache()
            with self._worker_code("to say what it can do"):
                self.capabilities = self._ask_capabilities()
            self.scheduler = dispatcher.scheduler_factory(self.kv_cache_config)
        self._sleep_mode = SleepMode(self.executor)
        queueing = f"scheduler {dotted_path(type(self.scheduler))} failed in add_request()"
        self._queueing = NamingCode(queueing, (InvalidRequest,), self._bound_plan)

    def _ask_capabilities(self) -> Capabilities:
        """What the workers can be asked for; EngineError where this engine is for none of it."""
        tasks = self.executor.get_supported_tasks()
        self._check_tasks(tasks)
        whole: set[str] = set()
        if self.vllm_config.model_config.runner_type == "pooling":
            whole.update(*self.collective_rpc("get_whole_prompt_tasks"))
        return Capabilities(self.executor.get_supported_sampling_params(), tasks, tuple(sorted(whole)))

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it can never be served.
            EngineError: the scheduler failed, whose class is in the text; other requests go on.
        """
        try:
            with self._queueing:
                self.scheduler.add_request(request)
        except EngineError:
            # It may have come as far as the queue.
            self.scheduler.finish_requests([request.request_id], RequestStatus.FINISHED_ABORTED)
            raise
        if self._recorder is not None:
            self._recorder.note_queued(request.request_id)

    def abort_requests(
        self, request_ids: Iterable[str], status: RequestStatus = RequestStatus.FINISHED_ABORTED
    ) -> None:
        """End requests now; ids that are not in flight are passed over."""
        self.scheduler.finish_requests(request_ids, status)

    def abort_all(self) -> list[str]:
        """End every request, at whatever point a step was broken off; returns their ids."""
        return self.scheduler.abort_all()

    def has_requests(self) -> bool:
        """Whether :meth:`step` has something to do, be it only to tell the workers who has ended. While the engine
        sleeps it has not.
        """
        return not self._sleep_mode.is_asleep and self.scheduler.has_requests()

    def step(self) -> list[EngineCoreOutput]:
        """Make one step.

        Returns: what is new, for each request that got a token.

        Raises:
            EngineError: the step failed. All requests in flight are ended, as they are by an interrupt.
        """
        if not self.has_requests():
            return []
        try:
            scheduler_output = self.scheduler.schedule()
            if self._recorder is not None:
                self._recorder.note_scheduled(scheduler_output)
            model_output = self.executor.execute_model(scheduler_output)
            outputs = self.scheduler.update_from_output(scheduler_output, model_output)
            if self._recorder is not None:
                self._recorder.note_step(self.scheduler.make_stats())
            return outputs
        except BaseException as error:
            ended = self.abort_all()
            # A plugin's sys.exit() must not end the process as if all were well, and a panic of compiled code, which
            # is no Exception either, names nobody.
            if isinstance(error, KeyboardInterrupt):
                raise
            # An error of ours says whose fault it is, which its cause may not.
            is_ours = isinstance(error, EngineError)
            cause = message_of(error) if is_ours else f"{innermost_cause(error)}{whose_code(error, self._bound_plan)}"
            raise EngineError(
                f"a step failed, which ended the {len(ended)} requests in flight: {cause}", request_ids=ended
            ) from error

    def record_stats(self) -> None:
        """From now on keep what stat loggers are told of a step, for :meth:`take_step_stats`."""
        self._recorder = StepRecorder(self._clock)

    def take_step_stats(self) -> StepStats | None:
        """What there is to tell of the last step, once; ``None`` unless it is recorded."""
        return self._recorder.take() if self._recorder is not None else None

    def make_step_stats(self) -> StepStats | None:
        """What there is to tell now, between two steps; ``None`` unless it is recorded."""
        return self._recorder.make(self.scheduler.make_stats()) if self._recorder is not None else None

    def reset_prefix_cache(self, *, reset_running_requests: bool = False) -> bool:
        """Forget what the KV cache holds for prompts to come; see :meth:`SchedulerInterface.reset_prefix_cache`. The
        workers are told where it was done.
        """
        done = self.scheduler.reset_prefix_cache(reset_running_requests=reset_running_requests)
        if done:
            self.executor.reset_prefix_cache()
        return done

    def sleep(self, level: int = 1) -> bool:
        """Stop the steps, and above level 0 let the workers give memory back. Requests in flight stay; above level 0
        they are preempted, and computed again later.

        Returns: whether it sleeps at this level now; not where it has given memory back before.

        Raises:
            ConfigError: sleep mode is not enabled.
            EngineError: the scheduler does not let go of the cache, or a worker failed.
        """
        check_sleep_mode(level, self.vllm_config.model_config)
        if self._sleep_mode.has_given_memory:
            logger.warning("the engine sleeps already; wake it up before it sleeps otherwise")
            return False
        if level and not self.reset_prefix_cache(reset_running_requests=True):
            raise EngineError(
                f"scheduler {dotted_path(type(self.scheduler))} did not reset the prefix cache, so that the KV cache "
                "is in use; the engine stays awake"
            )
        with self._worker_code("in sleep()"):
            self._sleep_mode.enter(level)
        return True

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Go on after :meth:`sleep`, with all that sleeps or with what ``tags`` name (``weights``, ``kv_cache``,
        ``scheduling``); steps are made again once no memory is missing.

        Returns: whether that is so.

        Raises:
            InvalidRequest: nothing has such a name.
            EngineError: a worker failed, and sleeps on; or the KV cache was to come before the weights.
        """
        with self._worker_code("in wake_up()"):
            self._sleep_mode.leave(tags)
        return not self.is_sleeping()

    def is_sleeping(self) -> bool:
        """Whether no steps are made."""
        return self._sleep_mode.is_asleep

    def check_health(self) -> None:
        """Raise whatever a worker has to complain about."""
        self.executor.check_health()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call a method of all workers, by name, or a callable that takes the worker first; results by rank.

        Raises:
            EngineError: it failed, with the worker's class and the method in its text and the cause behind it.
            ContractError: the workers have no such method.
        """
        with self._worker_code(f"in {name_of_method(method)}()"):
            return self.executor.collective_rpc(method, timeout, args, kwargs)

    def profile(self, is_start: bool, profile_prefix: str | None = None) -> None:
        """Let the workers begin to record what their devices do, or end it and write the traces."""
        with self._worker_code("in profile()"):
            self.executor.profile(is_start, profile_prefix)

    def get_stats(self) -> SchedulerStats:
        """Load and cache between two steps."""
        return self.scheduler.make_stats()

    def check_integrity(self) -> None:
        """EngineError where the books of requests and cache blocks do not agree."""
        self.scheduler.check_integrity()

    def shutdown(self) -> None:
        """Stop the scheduler and the workers; may be called twice."""
        try:
            self.scheduler.shutdown()
        finally:
            self.executor.shutdown()

    def _initialize_kv_cache(self) -> KVCacheConfig:
        """Ask the workers what they need and can have, agree, and let them allocate and warm up."""
        executor, cache_config = self.executor, self.vllm_config.cache_config
        with platform_code(self._platform):
            self._platform.register_custom_kv_cache_specs(self.vllm_config)
        spec = common_spec(executor.get_kv_cache_specs(), cache_config.block_size)
        layout = common_layout(executor.get_supported_kv_cache_layouts(), self.vllm_config.parallel_config.worker_cls)
        executor.set_kv_cache_layout(layout)
        # A model without a KV cache has nothing to measure memory for.
        available_bytes = min(executor.determine_available_memory()) if spec else 0
        if not spec:
            self._compute_prompts_whole()
        kv_cache_config = make_kv_cache_config(self.vllm_config, spec, layout, available_bytes)
        cache_config.num_gpu_blocks = kv_cache_config.num_blocks
        self._fit_max_model_len(request_capacity(kv_cache_config, cache_config.block_size))
        executor.initialize_from_config(kv_cache_config)
        return kv_cache_config

    def _compute_prompts_whole(self) -> None:
        """Without a KV cache nothing of a prompt is kept between steps, so that a step takes the longest there is."""
        scheduler_config, longest = self.vllm_config.scheduler_config, self.vllm_config.model_config.max_model_len
        scheduler_config.max_num_batched_tokens = max(scheduler_config.max_num_batched_tokens, longest)

    def _check_tasks(self, tasks: Sequence[str]) -> None:
        is_pooling = self.vllm_config.model_config.runner_type == "pooling"
        wanted: Sequence[str] = POOLING_TASKS if is_pooling else ("generate",)
        if not set(wanted) & set(tasks):
            raise EngineError(
                f"worker {self.vllm_config.parallel_config.worker_cls} supports the tasks {listing(tasks)} for "
                f"this model, and this engine is for {listing(wanted)}"
            )

    def _fit_max_model_len(self, capacity: int | None) -> None:
        """Where the cache holds fewer tokens than a request may have: lower the limit, unless it is the user's."""
        model_config = self.vllm_config.model_config
        if capacity is None or capacity >= model_config.max_model_len:
            return
        if model_config.original_max_model_len is not None:
            logger.warning(
                "the KV cache holds %d tokens, and a request may have %d: one that outgrows the cache ends early. "
                "Set engine.kv_cache_memory higher or engine.max_model_len lower",
                capacity,
                model_config.max_model_len,
            )
            return
        # The last token of a request is never computed, so it needs no place.
        fitting = capacity + 1
        logger.warning(
            "the KV cache holds %d tokens, so a request may have %d, and not the model's %d. Set "
            "engine.kv_cache_memory higher, or engine.max_model_len to what is needed",
            capacity,
            fitting,
            model_config.max_model_len,
        )
        self.executor.update_max_model_len(fitting)
        model_config.max_model_len = fitting

    def _worker_code(self, what: str) -> NamingCode:
        """Name the worker where something goes wrong that is not explained already."""
        worker = f"worker {self.vllm_config.parallel_config.worker_cls} of {self._platform_name}"
        return NamingCode(f"{worker} failed {what}", (VllmExtError,), self._bound_plan)
