"""The worker of in-tree platforms: one model on one device."""

from __future__ import annotations

import time
from typing import Any

import torch

from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheLayout, KVCacheSpec
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.sampling_params import WORKER_PARAMS
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.contracts.worker import CompilationTimes, WorkerBase
from vllm_ext.dispatch.dispatcher import get_current_dispatcher
from vllm_ext.distributed.parallel_state import GroupCoordinator, init_distributed_environment, use_tp_group
from vllm_ext.worker.loader import load_model
from vllm_ext.worker.memory import available_kv_cache_memory, measure_peak
from vllm_ext.worker.model_runner import ModelRunner


class Worker(WorkerBase):
    """Runs any registered model with the attention, communicator and ops of the engine's platform."""

    device: torch.device
    tp_group: GroupCoordinator | None = None

    def init_device(self) -> None:
        platform = self.current_platform
        self.device = torch.device(platform.device_type)
        platform.set_device(self.device)
        platform.seed_everything(self.model_config.seed)
        ranks = init_distributed_environment(
            self.parallel_config.world_size, self.rank, self.distributed_init_method, platform.dist_backend or "gloo"
        )
        self.tp_group = GroupCoordinator("tp:0", ranks, self.device, get_current_dispatcher())

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        with use_tp_group(self.tp_group):
            model = load_model(self.vllm_config, self.device, dummy_weights=load_dummy_weights)
        self.model_runner = ModelRunner(self.vllm_config, self.current_platform, model, self.device)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        return self.model_runner.get_kv_cache_spec()

    def get_supported_kv_cache_layouts(self) -> list[KVCacheLayout] | None:
        return self.model_runner.get_supported_kv_cache_layouts()

    def get_supported_sampling_params(self) -> frozenset[str]:
        return WORKER_PARAMS

    def determine_available_memory(self) -> int:
        wanted = self.cache_config.kv_cache_memory_bytes
        if wanted is None:
            used = measure_peak(self.current_platform, self.device, self.model_runner.profile_run)
        else:
            # The user has decided: nothing to find out by a run that may take seconds.
            used = int(self.current_platform.get_current_memory_usage(self.device))
        total = self.current_platform.get_device_total_memory(self.local_rank)
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

    def get_model(self) -> torch.nn.Module:
        return self.model_runner.model

    def shutdown(self) -> None:
        self.model_runner = None
        self.compilation_config.static_forward_context.clear()
        if self.tp_group is not None:
            self.tp_group.destroy()
            self.tp_group = None
