"""The worker contract: one process's share of a model on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_ext.contracts.current_platform import current_platform

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheLayout, KVCacheSpec
    from vllm_ext.contracts.outputs import ModelRunnerOutput
    from vllm_ext.contracts.scheduler_output import SchedulerOutput
    from vllm_ext.contracts.vllm_config import VllmConfig


class CompilationTimes(NamedTuple):
    """Seconds spent by :meth:`WorkerBase.compile_or_warm_up_model`."""

    language_model: float = 0.0
    encoder: float = 0.0


class WorkerBase:
    """What an executor calls, in this order.

    Start-up: constructor, :meth:`init_device`, :meth:`load_model`, :meth:`get_kv_cache_spec`,
    :meth:`get_supported_kv_cache_layouts`, :meth:`determine_available_memory`, :meth:`initialize_from_config`,
    :meth:`initialize_cache`, :meth:`compile_or_warm_up_model`. Then for each step :meth:`execute_model`, and
    :meth:`sample_tokens` where that returned ``None``. At the end :meth:`shutdown`.

    A method that is not overridden raises :class:`NotImplementedError` with the class and the method in its text.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        local_rank: int,
        rank: int,
        distributed_init_method: str,
        is_driver_worker: bool = False,
    ) -> None:
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.cache_config = vllm_config.cache_config
        self.parallel_config = vllm_config.parallel_config
        self.scheduler_config = vllm_config.scheduler_config
        self.device_config = vllm_config.device_config
        self.load_config = vllm_config.load_config
        self.compilation_config = vllm_config.compilation_config
        self.local_rank = local_rank
        self.rank = rank
        self.distributed_init_method = distributed_init_method
        self.is_driver_worker = is_driver_worker
        self.current_platform = current_platform.get()
        self.device: torch.device | None = None
        self.model_runner: Any = None

    def init_device(self) -> None:
        """Pick ``self.device`` and join the process groups."""
        raise self._not_implemented("init_device")

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Build the model on the device and load its weights (or random ones)."""
        raise self._not_implemented("load_model")

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """What each layer stores, by layer name; empty for a model without a KV cache."""
        raise self._not_implemented("get_kv_cache_spec")

    def get_supported_kv_cache_layouts(self) -> list[KVCacheLayout] | None:
        """Layouts that all of the model's attention layers can read, best first; ``None`` for any."""
        return None

    def determine_available_memory(self) -> int:
        """Bytes that the KV cache may take, after a measured run of the largest step."""
        raise self._not_implemented("determine_available_memory")

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Allocate the KV cache and bind it to the layers."""
        raise self._not_implemented("initialize_from_config")

    def initialize_cache(self, num_gpu_blocks: int, num_cpu_blocks: int) -> None:
        """Told the number of blocks once they are allocated; ``num_cpu_blocks`` is 0."""
        self.cache_config.num_gpu_blocks = num_gpu_blocks

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Anything that makes the first step as fast as the others."""
        raise self._not_implemented("compile_or_warm_up_model")

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run one step. ``None`` announces that :meth:`sample_tokens` completes it.

        A step without tokens still arrives, to deliver ``finished_req_ids``; it returns
        ``EMPTY_MODEL_RUNNER_OUTPUT``.
        """
        raise self._not_implemented("execute_model")

    def sample_tokens(self, grammar_output: Any | None) -> ModelRunnerOutput:
        """Second phase of a step whose :meth:`execute_model` returned ``None``."""
        raise self._not_implemented("sample_tokens")

    def get_model(self) -> torch.nn.Module:
        """The model, for inspection."""
        raise self._not_implemented("get_model")

    def get_supported_sampling_params(self) -> frozenset[str]:
        """Which of :data:`vllm_ext.contracts.sampling_params.WORKER_PARAMS` the worker acts on; the engine refuses
        requests that use others. A worker that uses :class:`vllm_ext.worker.sampler.Sampler` has all of them.
        """
        return frozenset({"temperature", "seed"})

    def check_health(self) -> None:
        """Raise if the worker cannot go on."""

    def shutdown(self) -> None:
        """Release device memory and leave the process groups; may be called twice."""

    def _not_implemented(self, method: str) -> NotImplementedError:
        cls = type(self)
        return NotImplementedError(f"worker {cls.__module__}.{cls.__qualname__} does not implement {method}()")


REQUIRED_METHODS = (
    "init_device",
    "load_model",
    "get_kv_cache_spec",
    "determine_available_memory",
    "initialize_from_config",
    "compile_or_warm_up_model",
    "execute_model",
)
"""What every worker implements itself; ``sample_tokens`` and ``get_model`` depend on how it is used."""


def missing_methods(worker_cls: type[WorkerBase]) -> list[str]:
    """Which of :data:`REQUIRED_METHODS` the class leaves as they are in :class:`WorkerBase`."""
    return [name for name in REQUIRED_METHODS if getattr(worker_cls, name) is getattr(WorkerBase, name)]
