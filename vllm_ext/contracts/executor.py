"""The executor contract: how the engine reaches its workers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, SupportsInt

from vllm_ext.contracts.worker import CompilationTimes
from vllm_ext.errors import ContractError, EngineError, VllmExtError

if TYPE_CHECKING:
    from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheLayout, KVCacheSpec
    from vllm_ext.contracts.outputs import ModelRunnerOutput
    from vllm_ext.contracts.scheduler_output import SchedulerOutput
    from vllm_ext.dispatch.dispatcher import Dispatcher
    from vllm_ext.plan import Receipt


class Executor(ABC):
    """Runs worker methods, on one worker or on many. vLLM: ``Executor``.

    A subclass provides four methods; everything the engine needs is written on top of :meth:`collective_rpc`. What a
    worker's method raises comes through; from another process, what is none of vllm_ext's errors comes as a WorkerError
    with its traceback.
    """

    receipts: tuple[Receipt, ...] = ()
    """Of the workers that have processes of their own, by rank: what each proved to run."""

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
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call a worker method (by name, or a callable that takes the worker first) on all workers; results by rank.

        ``timeout`` is in seconds, for executors that wait for workers elsewhere.

        Raises:
            ContractError: the workers have no such method. What a method raises comes through.
        """

    @abstractmethod
    def check_health(self) -> None:
        """EngineError where a worker cannot go on, or what its own ``check_health()`` raised."""

    @property
    def failure(self) -> VllmExtError | None:
        """Why no call can succeed any more, once that is so (vLLM: ``is_failed``)."""
        return None

    def register_failure_callback(self, callback: Callable[[VllmExtError], None]) -> None:
        """Call ``callback`` with :attr:`failure` when that is set, in any thread; it must not wait. Workers in the
        engine's own process never end by themselves, so by default there is nothing to call it for.
        """
        return

    @abstractmethod
    def shutdown(self) -> None:
        """Stop the workers; may be called twice."""

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        """What each worker's layers store, by layer name."""
        specs: list[dict[str, KVCacheSpec]] = self.collective_rpc("get_kv_cache_spec")
        return specs

    def get_supported_kv_cache_layouts(self) -> list[list[KVCacheLayout] | None]:
        """Layouts of the KV cache that each worker can read, best first; ``None`` for any. An extension of vLLM's
        contract, where the engine core calls the workers.
        """
        return self.collective_rpc("get_supported_kv_cache_layouts")

    def set_kv_cache_layout(self, layout: KVCacheLayout) -> None:
        """Tell the workers which layout of the KV cache they agreed on; ValueError where one was told another before.
        An extension of vLLM's contract.
        """
        self.collective_rpc("set_kv_cache_layout", args=(layout,))

    def get_supported_tasks(self) -> tuple[str, ...]:
        """What every worker's model can be asked for, in the order of the first one. vLLM: ``supported_tasks``.

        Raises:
            ContractError: a worker named none.
        """
        first, *others = self._names("get_supported_tasks")
        return tuple(task for task in first if all(task in other for other in others))

    def get_supported_sampling_params(self) -> frozenset[str]:
        """The sampling parameters that every worker acts on. An extension of vLLM's contract.

        Raises:
            ContractError: a worker returned no names.
        """
        return frozenset.intersection(*map(frozenset, self._names("get_supported_sampling_params")))

    def _names(self, method: str) -> list[tuple[str, ...]]:
        """What each worker's method returned, in whatever collection."""
        found: list[tuple[str, ...]] = []
        for names in self.collective_rpc(method):
            # A text is a collection of texts too.
            is_collection = isinstance(names, Collection) and not isinstance(names, str | bytes)
            if not is_collection or not all(isinstance(name, str) for name in names):
                raise ContractError(
                    f"{method}() of worker {self.vllm_config.parallel_config.worker_cls} returned {names!r}; it has to "
                    "return names, in a tuple or a set"
                )
            found.append(tuple(names))
        return found

    def determine_available_memory(self) -> list[int]:
        """Bytes that the KV cache may take, of each worker.

        Raises:
            EngineError: a worker returned no number.
        """
        found: list[int] = []
        for num_bytes in self.collective_rpc("determine_available_memory"):
            # A share of something is a float, and other libraries have numbers of their own; a text is none.
            is_number = isinstance(num_bytes, SupportsInt)
            if not is_number or not math.isfinite(num_bytes):
                raise EngineError(
                    f"determine_available_memory() of worker {self.vllm_config.parallel_config.worker_cls} returned "
                    f"{num_bytes!r}; it has to return the number of bytes that the KV cache may take"
                )
            found.append(int(num_bytes))
        return found

    def update_max_model_len(self, max_model_len: int) -> None:
        """Tell the workers that requests end earlier than they know, at ``max_model_len`` tokens. An extension of
        vLLM's contract.
        """
        self.collective_rpc("update_max_model_len", args=(max_model_len,))

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Allocate the caches, announce their size, and warm the model up.

        Raises:
            ContractError: ``compile_or_warm_up_model()`` did not return its seconds, which vLLM does not forgive.
        """
        self.collective_rpc("initialize_from_config", args=(kv_cache_config,))
        self.collective_rpc("initialize_cache", args=(kv_cache_config.num_blocks, 0))
        for times in self.collective_rpc("compile_or_warm_up_model"):
            if not isinstance(times, CompilationTimes):
                raise ContractError(
                    f"compile_or_warm_up_model() of the worker returned {times!r}; it has to return CompilationTimes"
                )

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        """One whole step, in one phase or in two (vLLM's has ``sample_tokens`` for the second); all ranks compute the
        same, the first one answers.

        Raises:
            RuntimeError: there is no output after the second phase.
        """
        output: ModelRunnerOutput | None = self.collective_rpc("execute_model", args=(scheduler_output,))[0]
        if output is None:
            output = self.collective_rpc("sample_tokens", args=(None,))[0]
        if output is None:
            raise RuntimeError("the worker returned None from execute_model() and from sample_tokens()")
        return output

    def reset_prefix_cache(self) -> None:
        """Tell the workers that the engine forgot what cached blocks hold. An extension of vLLM's contract."""
        self.collective_rpc("reset_prefix_cache")

    def sleep(self, level: int = 1) -> None:
        """Let the workers give memory back, once their devices are done. In vLLM it also remembers it, which here the
        engine core does.

        Args:
            level: the number of the sleep level, 1 or 2; see :meth:`WorkerBase.sleep`.
        """
        self.collective_rpc("synchronize_device")
        self.collective_rpc("sleep", kwargs={"level": level})

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Let the workers take it again; see :meth:`WorkerBase.wake_up`."""
        self.collective_rpc("wake_up", kwargs={"tags": tags})

    def profile(self, is_start: bool, profile_prefix: str | None = None) -> None:
        """Let the workers begin to record, or finish what their devices were given and write the traces, into files
        whose names begin with ``profile_prefix``.
        """
        if not is_start:
            self.collective_rpc("synchronize_device")
        self.collective_rpc("profile", args=(is_start, profile_prefix))
