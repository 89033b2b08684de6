"""The configuration object that platforms, workers and models see, with vLLM's names.

It is mutable, because a platform's hooks exist to change it; :class:`vllm_ext.dispatch.dispatcher.Dispatcher` records
what they changed. One object belongs to one engine.

What is a class variable here is a field in vLLM that platforms and workers read; it says how things are in this engine,
and cannot be otherwise. A hook that sets it to something else is warned about, or refused where it would matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vllm_ext.contracts.model_shape import ModelShape
from vllm_ext.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.kv_cache import KVCacheLayout
    from vllm_ext.contracts.pooling_params import ConvertType, RunnerType
    from vllm_ext.contracts.quantization import QuantizationConfig

SchedulingPolicy = Literal["fcfs", "priority"]
PoolingType = Literal["LAST", "CLS", "MEAN"]


class HFConfig:
    """A model's ``config.json`` with its keys as attributes.

    Sub-objects stay dictionaries. ``getattr`` of an absent key raises :class:`AttributeError`; ``get`` has a default.
    Setting an attribute sets the key, so that a platform's hook changes what the model is built from.
    """

    def __init__(self, values: dict[str, Any], source: Path | None = None) -> None:
        self.__dict__.update(_values=values, source=source)

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["_values"][key]
        except KeyError:
            source = self.__dict__.get("source")
            raise AttributeError(f"{source or 'the model configuration'} has no key {key!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self._values[key] = value

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``; ``default`` where it is absent or null."""
        value = self._values.get(key)
        return default if value is None else value

    def positive_int(self, key: str, default: int | None = None) -> int:
        """The value of ``key``, or ``default`` where it is absent or null.

        Raises:
            CheckpointError: it is no whole number of at least 1, or absent without a default.
        """
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            given = "missing" if value is None else repr(value)
            raise CheckpointError(
                f"{self.source or 'config.json'}: {key} is {given}; it takes a whole number from 1 on"
            )
        return value

    def positive_number(self, key: str, default: float) -> float:
        """The value of ``key``, or ``default`` where it is absent or null.

        Raises:
            CheckpointError: it is no finite number above 0.
        """
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise CheckpointError(f"{self.source or 'config.json'}: {key} is {value!r}; it takes a number above 0")
        return value

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """How positions are rotated: the old key ``rope_scaling``, or the new ``rope_parameters``; maybe empty.

        As in transformers, the old key counts where both are there: it was added by hand to a file that has the new
        one. The length that a model was trained on is looked for beside them, too.

        Raises:
            CheckpointError: it is no object.
        """
        rope = self.get("rope_scaling") or self.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise CheckpointError(f"{self.source or 'config.json'}: rope parameters are {rope!r}; they take an object")
        trained = self.get("original_max_position_embeddings")
        if trained is not None and rope.get("rope_type", rope.get("type")) in ("llama3", "yarn"):
            return rope | {"original_max_position_embeddings": trained}
        return rope

    def to_dict(self) -> dict[str, Any]:
        """A new dictionary of all keys; sub-objects are shared."""
        return dict(self._values)


@dataclass(frozen=True)
class PoolerConfig:
    """How a pooling model comes from the states of its tokens to one result. vLLM: ``PoolerConfig``."""

    pooling_type: PoolingType
    """The last token's state, the first one's, or the mean of all."""
    use_activation: bool = True
    """Whether results are brought into their final form, unless a request says otherwise."""
    dense: tuple[str, ...] = ()
    """Folders of projections that come after pooling, in this order (sentence-transformers' ``Dense``)."""
    embedding_size: int | None = None
    """Numbers in an embedding, where the model's files say."""
    do_lower_case: bool = False
    """Whether texts are put into lower case before they are tokenized."""
    activation_fn: str | None = None
    """Class path of what makes results of a classifier's scores, where the model's files say; only its name counts."""
    prompt: str = ""
    """What is put before each text."""


@dataclass
class ModelConfig(ModelShape):
    """The model: its directory, the dtype of weights and computation, and its length limit in tokens."""

    model: str
    hf_config: HFConfig
    dtype: torch.dtype
    max_model_len: int
    tokenizer: str
    seed: int = 0
    original_max_model_len: int | None = None
    """The user's limit; ``None`` where there is none, so that ``max_model_len`` may be lowered to what the KV cache
    holds."""
    tokenizer_mode: str = "auto"
    """Which of the registered tokenizers reads ``tokenizer``."""
    quantization: str | None = None
    """Name of the quantization method, whoever named it: the settings, or the checkpoint."""
    enforce_eager: bool = False
    """Whether every step is computed op by op, and none replayed as a static graph."""
    logits_processors: list[str] = field(default_factory=list)
    """Class paths of logits processors that are not plugins."""
    runner_type: RunnerType = "generate"
    """What the engine is for: new tokens, or results of pooling."""
    convert_type: ConvertType = "none"
    """What a model class for generation is made into, where it has to pool."""
    pooler_config: PoolerConfig | None = None
    """Where ``runner_type`` is ``pooling``."""
    enable_sleep_mode: bool = False
    """Whether the worker may be asked to give its memory back, and to go on later."""

    @property
    def architectures(self) -> list[str]:
        """Names of model classes, the best first; empty where ``config.json`` has none."""
        return list(self.hf_config.get("architectures", []))


@dataclass
class CacheConfig:
    """The KV cache. ``block_size`` in tokens, ``kv_cache_memory_bytes`` the user's limit, if any.

    A platform whose worker cannot start in the middle of a prompt sets ``enable_prefix_caching`` to False.
    """

    block_size: int = 16
    user_specified_block_size: bool = False
    """Whether ``block_size`` is the user's, and so not the platform's to choose."""
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks: int | None = None
    """Number of blocks, once :meth:`WorkerBase.determine_available_memory` was asked (vLLM's name, any device)."""
    enable_prefix_caching: bool = True
    kv_cache_layout: KVCacheLayout | None = None
    """What all workers agreed on, once they did."""

    cache_dtype: ClassVar[str] = "auto"
    """That of the model."""
    gpu_memory_utilization: ClassVar[float] = 0.92
    """vLLM's default, for workers that go by it; the engine has a limit in bytes, ``kv_cache_memory_bytes``."""
    num_gpu_blocks_override: ClassVar[int | None] = None
    is_attention_free: ClassVar[bool] = False
    mamba_block_size: ClassVar[int | None] = None
    mamba_cache_mode: ClassVar[str] = "none"
    kv_sharing_fast_prefill: ClassVar[bool] = False
    kv_offloading_size: ClassVar[float | None] = None

    @property
    def block_size_of_user(self) -> int | None:
        """``block_size`` where it is the user's; ``None`` while the platform may still choose."""
        return self.block_size if self.user_specified_block_size else None


@dataclass
class ParallelConfig:
    """Processes and the worker class. ``worker_cls`` is ``auto`` until the platform's hook has set it."""

    worker_cls: str = "auto"
    worker_extension_cls: str = ""
    """Class path of methods to add to the worker; empty for none."""
    distributed_executor_backend: str = "uniproc"
    """Name of the executor plugin; a hook may ask for another one, also as ``mp`` or ``uni``, unless the user did."""
    tensor_parallel_size: int = 1
    rank: int = 0
    all2all_backend: str = "allgather_reducescatter"
    """How tokens reach experts of other ranks; a platform's communicator may know other names."""

    pipeline_parallel_size: ClassVar[int] = 1
    data_parallel_size: ClassVar[int] = 1
    data_parallel_size_local: ClassVar[int] = 1
    data_parallel_rank: ClassVar[int] = 0
    data_parallel_rank_local: ClassVar[int | None] = None
    data_parallel_index: ClassVar[int] = 0
    data_parallel_external_lb: ClassVar[bool] = False
    data_parallel_hybrid_lb: ClassVar[bool] = False
    decode_context_parallel_size: ClassVar[int] = 1
    prefill_context_parallel_size: ClassVar[int] = 1
    cp_kv_cache_interleave_size: ClassVar[int] = 1
    enable_expert_parallel: ClassVar[bool] = False
    enable_eplb: ClassVar[bool] = False
    enable_elastic_ep: ClassVar[bool] = False
    enable_dbo: ClassVar[bool] = False
    use_ubatching: ClassVar[bool] = False
    use_sequence_parallel_moe: ClassVar[bool] = False
    use_ray: ClassVar[bool] = False
    """Tensors are split over workers, and nothing else is."""
    nnodes: ClassVar[int] = 1
    node_rank: ClassVar[int] = 0
    """All workers are on this machine."""
    disable_custom_all_reduce: ClassVar[bool] = True
    max_parallel_loading_workers: ClassVar[int | None] = None

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return self.tensor_parallel_size

    @property
    def local_world_size(self) -> int:
        """Number of workers on this machine."""
        return self.world_size

    @property
    def world_size_across_dp(self) -> int:
        """Number of workers over all engines of a service, which is one."""
        return self.world_size


@dataclass
class SchedulerConfig:
    """Limits of one step: number of requests, and of tokens over all of them. ``policy``: who comes first."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    policy: SchedulingPolicy = "fcfs"
    disable_hybrid_kv_cache_manager: bool = False
    """Whether layers with different sliding windows, or with and without one, come in one KV cache group."""
    scheduler_cls: str | type = "auto"
    """Class path of the scheduler, or the class itself; ``auto`` is the engine's own."""

    enable_chunked_prefill: ClassVar[bool] = True
    chunked_prefill_enabled: ClassVar[bool] = True
    """A long prompt is computed in parts."""
    long_prefill_token_threshold: ClassVar[int] = 0
    max_num_scheduled_tokens: ClassVar[int | None] = None
    """No limit besides ``max_num_batched_tokens``."""
    async_scheduling: ClassVar[bool] = False
    is_multimodal_model: ClassVar[bool] = False
    disable_chunked_mm_input: ClassVar[bool] = False
    max_num_encoder_input_tokens: ClassVar[int] = 0
    encoder_cache_size: ClassVar[int] = 0


@dataclass
class DeviceConfig:
    """``device_type`` is torch's name of the device."""

    device_type: str = ""


@dataclass
class LoadConfig:
    """``use_tqdm_on_load``: show progress while weights are read (on a terminal)."""

    use_tqdm_on_load: bool = False
    load_format: str = "auto"
    """Which of the registered model loaders fills the model."""


@dataclass
class AttentionConfig:
    """``backend`` is ``None`` (the platform chooses), a name of ``AttentionBackendEnum`` or a class path."""

    backend: str | None = None


@dataclass
class CompilationConfig:
    """``custom_ops`` as in vLLM: ``all`` or ``none``, then ``+name`` and ``-name``."""

    custom_ops: list[str] = field(default_factory=list)
    static_forward_context: dict[str, Any] = field(default_factory=dict)
    """The model's attention layers, by their name in it; those of encoders own no KV cache."""
    cudagraph_mode: str = "NONE"
    """vLLM's name of a graph mode: ``FULL``, ``FULL_DECODE_ONLY`` and ``FULL_AND_PIECEWISE`` let decode steps be
    replayed; ``NONE`` unless the platform supports it."""

    mode: ClassVar[int] = 0
    """vLLM's number for no compilation."""
    backend: ClassVar[str] = ""
    splitting_ops: ClassVar[list[str] | None] = None
    compile_sizes: ClassVar[list[int | str] | None] = None
    cudagraph_num_of_warmups: ClassVar[int] = 0


@dataclass
class ProfilerConfig:
    """``torch_profiler_dir``: folder for the traces of :meth:`WorkerBase.profile`; ``None`` for no profiling."""

    torch_profiler_dir: str | None = None


@dataclass(frozen=True)
class ObservabilityConfig:
    """What is recorded of requests besides what stat loggers get: nothing."""

    otlp_traces_endpoint: str | None = None
    collect_detailed_traces: list[str] | None = None
    kv_cache_metrics: bool = False
    cudagraph_metrics: bool = False
    enable_layerwise_nvtx_tracing: bool = False
    enable_mfu_metrics: bool = False


@dataclass
class VllmConfig:
    """All configuration of one engine."""

    model_config: ModelConfig
    cache_config: CacheConfig = field(default_factory=CacheConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)
    device_config: DeviceConfig = field(default_factory=DeviceConfig)
    load_config: LoadConfig = field(default_factory=LoadConfig)
    attention_config: AttentionConfig = field(default_factory=AttentionConfig)
    compilation_config: CompilationConfig = field(default_factory=CompilationConfig)
    profiler_config: ProfilerConfig = field(default_factory=ProfilerConfig)
    quant_config: QuantizationConfig | None = None
    """How the weights are quantized, where they are."""
    additional_config: dict[str, Any] = field(default_factory=dict)

    lora_config: ClassVar[Any] = None
    speculative_config: ClassVar[Any] = None
    num_speculative_tokens: ClassVar[int] = 0
    kv_transfer_config: ClassVar[Any] = None
    kv_events_config: ClassVar[Any] = None
    ec_transfer_config: ClassVar[Any] = None
    weight_transfer_config: ClassVar[Any] = None
    reasoning_config: ClassVar[Any] = None
    diffusion_config: ClassVar[Any] = None
    watermark_config: ClassVar[Any] = None
    """``None``, as in a vLLM of which none of it is asked: there are no adapters, drafts and connectors."""
    observability_config: ClassVar[ObservabilityConfig] = ObservabilityConfig()
    use_v2_model_runner: ClassVar[bool] = False
    """What a worker is told of a step is what vLLM's first model runner takes."""


_current: ContextVar[VllmConfig | None] = ContextVar("vllm_ext_vllm_config", default=None)


@contextmanager
def set_current_vllm_config(vllm_config: VllmConfig) -> Iterator[None]:
    """Make ``vllm_config`` what :func:`get_current_vllm_config` answers inside the block (this thread or task)."""
    token = _current.set(vllm_config)
    try:
        yield
    finally:
        _current.reset(token)


def find_current_vllm_config() -> VllmConfig | None:
    """The configuration of the engine being built; ``None`` outside of one."""
    return _current.get()


def get_current_vllm_config() -> VllmConfig:
    """The configuration of the engine being built; RuntimeError outside of one."""
    vllm_config = _current.get()
    if vllm_config is None:
        raise RuntimeError(
            "no engine is being built here: layers and custom ops are constructed inside set_current_vllm_config(...)"
        )
    return vllm_config
