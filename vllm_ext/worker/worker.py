"""The worker of in-tree platforms: one model on one device."""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING, Any

import torch

from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheSpec
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.platform_device import platform_name
from vllm_ext.contracts.sampling_params import WORKER_PARAMS
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.contracts.worker import CompilationTimes, WorkerBase
from vllm_ext.dispatch.dispatcher import get_current_dispatcher
from vllm_ext.dispatch.naming_code import platform_code
from vllm_ext.distributed.parallel_state import TP_GROUP, GroupCoordinator, init_distributed_environment, use_tp_group
from vllm_ext.errors import EngineError, innermost_cause
from vllm_ext.worker.loading.loader import load_model
from vllm_ext.worker.memory import available_kv_cache_memory, measure_step
from vllm_ext.worker.model_runner import ModelRunner
from vllm_ext.worker.platform_needs import check_platform_needs
from vllm_ext.worker.profiler import TorchProfiler

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import Platform

logger = logging.getLogger(__name__)


class Worker(WorkerBase):
    """Runs any registered model with the attention, communicator and ops of the engine's platform."""

    device: torch.device
    tp_group: GroupCoordinator | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_platform_needs(type(self), Worker, self.current_platform, self.model_config)
        self._profiler = TorchProfiler(self.vllm_config.profiler_config.torch_profiler_dir, self.rank)

    def init_device(self) -> None:
        platform = self.current_platform
        self.device_id = platform.logical_device_id_to_visible_device_id(self.local_rank)
        self.device = _find_device(platform, self.device_id)
        platform.set_device(self.device)
        with platform_code(platform, may_refuse=True):
            platform.check_if_supports_dtype(self.model_config.dtype)
        name = platform.get_device_name(self.device_id)
        number = platform.device_id_to_physical_device_id(self.local_rank)
        logger.info("worker %d uses device %d of the machine, %s", self.rank, number, name)
        platform.seed_everything(self.model_config.seed)
        ranks = init_distributed_environment(
            self.parallel_config.world_size, self.rank, self.distributed_init_method, platform.dist_backend or "gloo"
        )
        self.tp_group = GroupCoordinator(TP_GROUP, ranks, self.device, get_current_dispatcher())

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        self._has_dummy_weights = load_dummy_weights
        processors = get_current_dispatcher().logits_processors
        model = self._build_model()
        self.model_runner = ModelRunner(self.vllm_config, self.current_platform, model, self.device, processors)

    def _build_model(self) -> torch.nn.Module:
        with use_tp_group(self.tp_group):
            return load_model(self.vllm_config, self.device, dummy_weights=self._has_dummy_weights)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        return self.model_runner.get_kv_cache_spec()

    def get_supported_tasks(self) -> tuple[str, ...]:
        pooling = self.model_runner.pooling
        return ("generate",) if pooling is None else tuple(sorted(pooling.pooler.get_supported_tasks()))

    def get_whole_prompt_tasks(self) -> tuple[str, ...]:
        pooler = self.model_runner.pooling.pooler
        return tuple(task for task in self.get_supported_tasks() if pooler.needs_all_tokens(task))

    def get_supported_sampling_params(self) -> frozenset[str]:
        return WORKER_PARAMS

    def determine_available_memory(self) -> int:
        wanted = self.cache_config.kv_cache_memory_bytes
        if wanted is None:
            used = measure_step(self.current_platform, self.device, self.model_runner.largest_step())
        else:
            # The user has decided: nothing to find out by a run that may take seconds.
            used = int(self.current_platform.get_current_memory_usage(self.device))
        total = self.current_platform.get_device_total_memory(self.device_id)
        return available_kv_cache_memory(total, used, wanted)

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        self.model_runner.initialize_kv_cache(kv_cache_config)

    def compile_or_warm_up_model(self) -> CompilationTimes:
        started = time.perf_counter()
        self.model_runner.warm_up()
        return CompilationTimes(language_model=time.perf_counter() - started)

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        return self.model_runner.execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any | None) -> ModelRunnerOutput:
        return self.model_runner.sample_tokens()

    def profile(self, is_start: bool = True, profile_prefix: str | None = None) -> None:
        if is_start:
            self._profiler.start(profile_prefix)
        else:
            logger.info("the profile is in %s", self._profiler.stop())

    def sleep(self, level: int = 1) -> None:
        self.model_runner.free_kv_cache()
        if level == 2:
            self.model_runner.free_model()
            # Modules may lead back to themselves, as those do that call a method of their own by an attribute.
            gc.collect()

    def wake_up(self, tags: list[str] | None = None) -> None:
        if (tags is None or "weights" in tags) and self.model_runner.model is None:
            # An attempt that failed may have registered layers, which would be there twice.
            self.compilation_config.static_forward_context.clear()
            self.model_runner.use_model(self._build_model())
        if tags is None or "kv_cache" in tags:
            self.model_runner.allocate_kv_cache()

    def get_model(self) -> torch.nn.Module:
        if self.model_runner.model is None:
            raise EngineError("the worker sleeps, and its weights are not there; wake_up() loads them")
        model: torch.nn.Module = self.model_runner.model
        return model

    def clear_graphs(self) -> None:
        # There is none before the model is loaded, and after the end.
        if self.model_runner is not None:
            self.model_runner.clear_graphs()

    def shutdown(self) -> None:
        try:
            if self._profiler.is_running:
                self.profile(is_start=False)
        finally:
            self.model_runner = None
            self.compilation_config.static_forward_context.clear()
            if self.tp_group is not None:
                self.tp_group.destroy()
                self.tp_group = None


def _find_device(platform: Platform, device_id: int) -> torch.device:
    """torch's device; EngineError where torch cannot put anything there."""
    # The processor is one device, whatever the number.
    is_cpu = platform.device_type == "cpu"
    device = torch.device("cpu") if is_cpu else torch.device(platform.device_type, device_id)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # each for another kind of device
        raise EngineError(
            f"{platform_name(platform)} has device_type {platform.device_type!r}, and torch "
            f"{torch.__version__} cannot use {device}: {innermost_cause(error)}. The platform's package has to bring a "
            "backend for it, and import that with its class"
        ) from error
    return device
