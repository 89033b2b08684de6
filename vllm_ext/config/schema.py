"""The settings as typed, frozen structs. A key that is not here does not exist.

Every field has a one-line meaning in ``Meta``, which ``etc/vllm-ext.yaml`` and the JSON Schema repeat. A field with
``extra={"secret": True}`` in its ``Meta`` is never shown.
"""

# Annotations are evaluated here, and not kept as strings: every process reads them, which is three times as fast so.
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SchedulingPolicy = Literal["fcfs", "priority"]
Runner = Literal["auto", "generate", "pooling"]
Convert = Literal["auto", "none", "embed", "classify"]
Pooling = Literal["auto", "LAST", "CLS", "MEAN"]
PositiveInt = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping in the settings file."""


class PlatformSettings(_Section, frozen=True):
    driver: Annotated[
        str | list[str],
        Meta(description="auto, a platform plugin's name, or a list of names of which the first that activates wins"),
    ] = "auto"
    disabled: Annotated[list[str], Meta(description="platform plugins never to be used")] = []


class HookSettings(_Section, frozen=True):
    enabled: Annotated[
        Literal["all"] | list[str],
        Meta(description="all, or the names to load, in this order"),
    ] = "all"
    disabled: Annotated[list[str], Meta(description="names never to be loaded; wins over enabled")] = []


class OptInSettings(HookSettings, frozen=True):
    enabled: Annotated[
        Literal["all"] | list[str],
        Meta(description="all, or the names to load, in this order; none by default: to load one is to open a door"),
    ] = []


class IOProcessorSettings(HookSettings, frozen=True):
    enabled: Annotated[
        Literal["all"] | list[str],
        Meta(description="all, or the names that may be used; a model gets the one it wants only if it is named here"),
    ] = "all"
    use: Annotated[str | None, Meta(description="the one to use; null where nothing, or the model, names one")] = None


class PluginsSettings(_Section, frozen=True):
    general: HookSettings = field(default_factory=HookSettings)
    io_processor: IOProcessorSettings = field(default_factory=IOProcessorSettings)
    stat_logger: HookSettings = field(default_factory=HookSettings)
    endpoint: OptInSettings = field(default_factory=OptInSettings)
    logits_processor: HookSettings = field(default_factory=HookSettings)


class ProbeSettings(_Section, frozen=True):
    timeout_s: Annotated[
        Seconds, Meta(description="seconds that one plugin may take where it is loaded in a process of its own")
    ] = 30.0


class AttentionSettings(_Section, frozen=True):
    backend: Annotated[
        str,
        Meta(description="auto (the platform's choice), a name such as SDPA or one of a plugin's, or a class path"),
    ] = "auto"


class WorkerSettings(_Section, frozen=True):
    cls: Annotated[str, Meta(description="auto (the platform's choice) or a class path")] = "auto"
    extension_cls: Annotated[
        str | None, Meta(description="class path of methods to add to the worker, for collective_rpc; null for none")
    ] = None


class CommunicatorSettings(_Section, frozen=True):
    cls: Annotated[str, Meta(description="auto (the platform's choice) or a class path")] = "auto"


class ProfilerSettings(_Section, frozen=True):
    torch_profiler_dir: Annotated[
        str | None, Meta(description="folder for the traces of start_profile(); null for no profiling")
    ] = None


class EngineSettings(_Section, frozen=True):
    model: Annotated[
        str | None,
        Meta(description="directory of a Hugging Face model; null for the model that comes with vllm-ext"),
    ] = None
    runner: Annotated[
        Runner,
        Meta(description="what the model is for: generate or pooling; auto goes by its architecture and its files"),
    ] = "auto"
    convert: Annotated[
        Convert,
        Meta(
            description="make a generating model into one that pools: embed or classify; auto where runner asks for it"
        ),
    ] = "auto"
    pooling_type: Annotated[
        Pooling,
        Meta(
            description="which token's state stands for a prompt: LAST, CLS (the first), MEAN; auto is the model's own"
        ),
    ] = "auto"
    dtype: Annotated[Dtype, Meta(description="dtype of weights and computation; auto is the checkpoint's")] = "auto"
    max_model_len: Annotated[
        PositiveInt | None,
        Meta(description="tokens of prompt and output together; null for the model's own limit"),
    ] = None
    block_size: Annotated[PositiveInt, Meta(description="tokens in a block of the KV cache")] = 16
    max_num_seqs: Annotated[PositiveInt, Meta(description="requests computed in one step at most")] = 64
    max_num_batched_tokens: Annotated[PositiveInt, Meta(description="tokens computed in one step at most")] = 2048
    kv_cache_memory: Annotated[
        PositiveInt | None, Meta(description="bytes for the KV cache; null for what fits and can be used")
    ] = None
    enable_prefix_caching: Annotated[
        bool, Meta(description="keep what the KV cache holds, for prompts that begin alike")
    ] = True
    scheduling_policy: Annotated[
        SchedulingPolicy,
        Meta(description="fcfs (first come, first served) or priority (lower values first, then first come)"),
    ] = "fcfs"
    scheduler_cls: Annotated[str, Meta(description="auto (the engine's own scheduler) or a class path")] = "auto"
    logits_processors: Annotated[
        list[str],
        Meta(description="class paths of logits processors, applied after those of plugins"),
    ] = []
    quantization: Annotated[
        str | None,
        Meta(description="quantization method for the weights, such as int8; null for the checkpoint's own, if any"),
    ] = None
    load_format: Annotated[
        str,
        Meta(description="where weights come from: auto, safetensors, dummy (random numbers), or a plugin's format"),
    ] = "auto"
    tokenizer_mode: Annotated[
        str, Meta(description="how texts become tokens: auto or hf (tokenizer.json), or a plugin's mode")
    ] = "auto"
    executor: Annotated[str, Meta(description="executor plugin that runs the workers: uniproc, multiproc")] = "uniproc"
    tensor_parallel_size: Annotated[PositiveInt, Meta(description="workers that share each layer")] = 1
    core_process: Annotated[
        bool, Meta(description="whether the engine core behind AsyncLLM has a process of its own, or a thread")
    ] = False
    join_timeout_s: Annotated[
        Seconds, Meta(description="seconds that worker processes wait for the last of them when they start")
    ] = 20.0
    execute_model_timeout_s: Annotated[
        Seconds, Meta(description="seconds that worker processes may take for one step")
    ] = 300.0
    master_port: Annotated[
        Port | None,
        Meta(description="port on which worker processes find each other; null for any free one"),
    ] = None
    enforce_eager: Annotated[
        bool,
        Meta(description="whether every step is computed op by op, and none replayed as a static graph"),
    ] = False
    enable_sleep_mode: Annotated[
        bool,
        Meta(description="whether the engine can be put to sleep: sleep() gives its memory back until wake_up()"),
    ] = False
    disable_log_stats: Annotated[
        bool,
        Meta(description="whether stat loggers that come with vllm-ext are off unless plugins.stat_logger names them"),
    ] = True
    log_stats_interval_s: Annotated[Seconds, Meta(description="seconds between two calls of a stat logger's log()")] = (
        10.0
    )
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="seed of the engine's random numbers")] = 0


class ServerSettings(_Section, frozen=True):
    host: Annotated[
        str,
        Meta(
            min_length=1,
            description="address to listen on; 0.0.0.0 is every network of this machine, as :: is with IPv6",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 for any free one")] = 8000
    api_key: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="what clients have to send as a bearer token; null for none", extra={"secret": True}),
    ] = None
    served_model_name: Annotated[
        str | None, Meta(description="name of the model for clients; null for what engine.model is")
    ] = None


class Settings(_Section, frozen=True):
    """All settings, with their defaults."""

    host: Annotated[
        Literal["embedded", "vllm"],
        Meta(description="what runs the model: the engine that comes with vllm-ext, or a vLLM beside it"),
    ] = "embedded"
    platform: PlatformSettings = field(default_factory=PlatformSettings)
    plugins: PluginsSettings = field(default_factory=PluginsSettings)
    allow_distributions: Annotated[
        list[str] | None,
        Meta(description="distributions, such as acme or acme==1.2: nothing of any other is imported; null for all"),
    ] = None
    options: Annotated[
        dict[str, dict[str, Any]],
        Meta(description="by plugin name, a mapping of the plugin's own keys, which is handed to it"),
    ] = {}
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    attention: AttentionSettings = field(default_factory=AttentionSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    communicator: CommunicatorSettings = field(default_factory=CommunicatorSettings)
    custom_ops: Annotated[
        list[str], Meta(description="custom ops of the platform: all or none, then +name and -name")
    ] = []
    profiler: ProfilerSettings = field(default_factory=ProfilerSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
