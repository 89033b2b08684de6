"""The worker contract: one process's share of a model on one device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.errors import dotted_path

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheLayout, KVCacheSpec
    from vllm_ext.contracts.outputs import ModelRunnerOutput
    from vllm_ext.contracts.scheduler_output import SchedulerOutput
    from vllm_ext.contracts.vllm_config import VllmConfig

T = TypeVar("T")


class CompilationTimes(NamedTuple):
    """Seconds spent by :meth:`WorkerBase.compile_or_warm_up_model`."""

    language_model: float = 0.0
    encoder: float = 0.0


class WorkerBase:
    """What an executor calls, in this order; names and meanings are those of vLLM's ``WorkerBase``, also of the methods
    that its engine calls by name and the class does not declare.

    Start-up: constructor, :meth:`init_device`, :meth:`load_model`, :meth:`get_kv_cache_spec`,
    :meth:`get_supported_kv_cache_layouts`, :meth:`set_kv_cache_layout`, :meth:`determine_available_memory`,
    :meth:`update_max_model_len` (where the cache is smaller than a request may be), :meth:`initialize_from_config`,
    :meth:`initialize_cache`, :meth:`compile_or_warm_up_model`, :meth:`get_supported_tasks`,
    :meth:`get_supported_sampling_params`. Then for each step :meth:`execute_model`, and :meth:`sample_tokens` where
    that returned ``None``. Between steps whatever users ask for. At the end :meth:`shutdown`.

    A method that is not overridden and has to be raises :class:`NotImplementedError` with the class and the method in
    its text; the engine names all of these before it calls any.
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
        self.lora_config = vllm_config.lora_config
        self.speculative_config = vllm_config.speculative_config
        self.observability_config = vllm_config.observability_config
        self.kv_transfer_config = vllm_config.kv_transfer_config
        self.local_rank = local_rank
        self.rank = rank
        self.distributed_init_method = distributed_init_method
        self.is_driver_worker = is_driver_worker
        self.current_platform = current_platform.get()
        self.device: torch.device | None = None
        self.model_runner: Any = None

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model knows; CheckpointError where its configuration does not say."""
        return self.model_config.hf_config.positive_int("vocab_size")

    # Start-up, in the order of the calls ----------------------------------------------------------------------------

    def init_device(self) -> None:
        """Pick the device, as ``device``, and join the process groups."""
        raise self._not_implemented("init_device")

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Build the model on the device and load its weights (or random ones). Its layers enter themselves into
        ``compilation_config.static_forward_context``.
        """
        raise self._not_implemented("load_model")

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """What each layer stores, by layer name; empty for a model without a KV cache."""
        if type(self).get_kv_cache_spaces is not WorkerBase.get_kv_cache_spaces:
            _warn_of_old_name(type(self), "implements")
            return self.get_kv_cache_spaces()
        raise self._not_implemented("get_kv_cache_spec")

    def get_kv_cache_spaces(self) -> dict[str, KVCacheSpec]:
        """The name of :meth:`get_kv_cache_spec` in vLLM's documentation; deprecated, to be removed in vllm_ext 0.3.0.
        Either may be implemented. An extension of vLLM's contract.
        """
        _warn_of_old_name(type(self), "is asked for")
        return self.get_kv_cache_spec()

    def get_supported_kv_cache_layouts(self) -> list[KVCacheLayout] | None:
        """Layouts that the attention backends of all layers can read, best first; ``None`` for any."""
        layouts: list[KVCacheLayout] | None = None
        layers = self.compilation_config.static_forward_context.values()
        for backend in dict.fromkeys(layer.attn_backend for layer in layers if hasattr(layer, "attn_backend")):
            supported = backend.supported_kv_cache_layouts()
            if supported is not None:
                layouts = [layout for layout in (supported if layouts is None else layouts) if layout in supported]
        return layouts

    def set_kv_cache_layout(self, layout: KVCacheLayout) -> None:
        """Told what all workers agreed on; kept as ``cache_config.kv_cache_layout``.

        Raises:
            ValueError: it was told another one before.
        """
        before = self.cache_config.kv_cache_layout
        if before not in (None, layout):
            raise ValueError(f"the KV cache has the layout {before}, and cannot be given {layout}")
        self.cache_config.kv_cache_layout = layout

    def determine_available_memory(self) -> int:
        """Bytes that the KV cache may take, beside what the largest step needs. Not asked where no layer has
        a KV cache.
        """
        raise self._not_implemented("determine_available_memory")

    def update_max_model_len(self, max_model_len: int) -> None:
        """Told ``max_model_len``, in tokens of prompt and output, where the engine lowered it to what the KV cache
        holds; sets ``model_config.max_model_len``.
        """
        self.model_config.max_model_len = max_model_len

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Allocate the KV cache and bind it to the layers."""
        raise self._not_implemented("initialize_from_config")

    def initialize_cache(self, num_gpu_blocks: int, num_cpu_blocks: int) -> None:
        """Told the number of blocks, ``num_gpu_blocks``, once they are allocated; sets ``cache_config.num_gpu_blocks``.
        The number ``num_cpu_blocks`` is 0. An extension of vLLM's contract: its documentation has it, and 0.32 no more.
        """
        self.cache_config.num_gpu_blocks = num_gpu_blocks

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Anything that makes the first step as fast as the others, such as capturing graphs; returns the seconds
        that it took. Nothing by default (in vLLM, to be implemented).
        """
        return CompilationTimes()

    def get_supported_tasks(self) -> tuple[str, ...]:
        """What the model can be asked for, in vLLM's words; the engine takes ``generate``, or
        what a pooling model can be asked for (:data:`vllm_ext.contracts.pooling_params.POOLING_TASKS`)."""
        return ("generate",)

    def get_whole_prompt_tasks(self) -> tuple[str, ...]:
        """Those of :meth:`get_supported_tasks` for which a pooling model needs the states of all tokens of a prompt, so
        that its beginning is not taken from the prefix cache; by default all. Not asked of other models. An extension
        of vLLM's contract.
        """
        return self.get_supported_tasks()

    def get_supported_sampling_params(self) -> frozenset[str]:
        """Which of :data:`vllm_ext.contracts.sampling_params.WORKER_PARAMS` the worker acts on; the engine refuses
        requests that use others. ``extra_args`` stands for the logits processors of plugins. The in-tree worker has
        all of them. An extension of vLLM's contract.
        """
        return frozenset({"temperature", "seed"})

    # Steps ----------------------------------------------------------------------------------------------------------

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run one step. ``None`` announces that :meth:`sample_tokens` completes it.

        A step without tokens still arrives, to deliver ``finished_req_ids``; it returns
        ``EMPTY_MODEL_RUNNER_OUTPUT``. A request whose blocks were taken for others is not finished: what is known of it
        is kept, but for its blocks, until it is among ``resumed_req_ids`` with other ones.
        """
        raise self._not_implemented("execute_model")

    def sample_tokens(self, grammar_output: Any | None) -> ModelRunnerOutput:
        """Second phase of a step whose :meth:`execute_model` returned ``None``; ``grammar_output`` is ``None``."""
        raise self._not_implemented("sample_tokens")

    # Between steps --------------------------------------------------------------------------------------------------

    def reset_prefix_cache(self) -> None:
        """Told that the engine forgot what cached blocks hold, for workers that keep something about them. An extension
        of vLLM's contract, where only the scheduler is told.
        """

    def check_health(self) -> None:
        """RuntimeError, or another one, where the worker cannot go on; it is reported as the worker's failure."""

    def synchronize_device(self) -> None:
        """Wait for all that the device was given to do; where torch does not know the device as an accelerator, to be
        overridden.
        """
        import torch

        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def profile(self, is_start: bool = True, profile_prefix: str | None = None) -> None:
        """Begin to record what the device does, or end it and write the trace into the folder
        ``profiler_config.torch_profiler_dir``, in a file whose name begins with ``profile_prefix``.
        """
        raise self._not_implemented("profile")

    def sleep(self, level: int = 1) -> None:
        """Give memory back until :meth:`wake_up`. Nothing is in flight that has a place in the KV cache, and no step is
        made meanwhile.

        Args:
            level: the number 1 or 2. 1 gives that of the KV cache, whose contents are lost, and where the device's
                memory is its own, that of the weights, which are kept elsewhere; 2 gives both and keeps nothing.
        """
        raise self._not_implemented("sleep")

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Take memory again, and go on as before :meth:`sleep`; after level 2 with weights loaded anew (in vLLM whoever
        called has to load them).

        Args:
            tags: what is taken, ``weights`` or ``kv_cache``, the former first; ``None`` for all that sleeps.
        """
        raise self._not_implemented("wake_up")

    def get_model(self) -> torch.nn.Module:
        """The model, for inspection."""
        raise self._not_implemented("get_model")

    def apply_model(self, fn: Callable[[torch.nn.Module], T]) -> T:
        """What ``fn`` returns for the model."""
        return fn(self.get_model())

    def clear_graphs(self) -> None:
        """Forget steps that were recorded to be replayed: code that the engine does not know has run, and may have
        exchanged weights or layers. Called after :meth:`apply_model`, and after functions and methods of the
        worker's own that ``collective_rpc`` was given. An extension of vLLM's contract; does nothing by default.
        """

    def get_model_inspection(self) -> str:
        """The model's modules as a tree, for people."""
        return str(self.get_model())

    def shutdown(self) -> None:
        """Release device memory and leave the process groups; may be called twice."""

    def _not_implemented(self, method: str) -> NotImplementedError:
        cls = type(self)
        return NotImplementedError(f"worker {dotted_path(cls)} does not implement {method}()")


def _warn_of_old_name(cls: type[WorkerBase], verb: str) -> None:
    warnings.warn(
        f"worker {dotted_path(cls)} {verb} get_kv_cache_spaces(), an older name of "
        "get_kv_cache_spec(), which vllm_ext 0.3.0 removes; use get_kv_cache_spec()",
        DeprecationWarning,
        stacklevel=3,
    )
