"""The executor contract: how the engine reaches its workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheLayout, KVCacheSpec
    from vllm_ext.contracts.outputs import ModelRunnerOutput
    from vllm_ext.contracts.scheduler_output import SchedulerOutput
    from vllm_ext.dispatch.dispatcher import Dispatcher


class Executor(ABC):
    """Runs worker methods, on one worker or on many.

    A subclass provides three methods; everything the engine needs is written on top of :meth:`collective_rpc`.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.vllm_config = dispatcher.vllm_config
        self._init_executor()

    @abstractmethod
    def _init_executor(self) -> None:
        """Create the workers and bring them up to a loaded model."""

    @abstractmethod
    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call a worker method (by name, or a callable that takes the worker) on all workers; results by rank."""

    @abstractmethod
    def check_health(self) -> None:
        """Raise if a worker cannot go on."""

    @abstractmethod
    def shutdown(self) -> None:
        """Stop the workers; may be called twice."""

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        """What each layer stores, by layer name, of each worker."""
        specs: list[dict[str, KVCacheSpec]] = self.collective_rpc("get_kv_cache_spec")
        return specs

    def get_supported_kv_cache_layouts(self) -> list[list[KVCacheLayout] | None]:
        """Layouts of the KV cache that each worker can read, best first; ``None`` for any."""
        return self.collective_rpc("get_supported_kv_cache_layouts")

    def get_supported_sampling_params(self) -> frozenset[str]:
        """The sampling parameters that every worker acts on."""
        return frozenset.intersection(*self.collective_rpc("get_supported_sampling_params"))

    def determine_available_memory(self) -> list[int]:
        """Bytes that the KV cache may take, of each worker."""
        return self.collective_rpc("determine_available_memory")

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Allocate the caches, announce their size, and warm the model up."""
        self.collective_rpc("initialize_from_config", (kv_cache_config,))
        self.collective_rpc("initialize_cache", (kv_cache_config.num_blocks, 0))
        self.collective_rpc("compile_or_warm_up_model")

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        """One whole step, in one phase or in two; all ranks compute the same, the first one answers."""
        output: ModelRunnerOutput | None = self.collective_rpc("execute_model", (scheduler_output,))[0]
        if output is None:
            output = self.collective_rpc("sample_tokens", (None,))[0]
        if output is None:
            raise RuntimeError("the worker returned None from execute_model() and from sample_tokens()")
        return output
