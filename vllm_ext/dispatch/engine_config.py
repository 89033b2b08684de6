"""From settings and a model's own configuration to the :class:`VllmConfig` of an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_ext.config.schema import EngineSettings, Settings
from vllm_ext.contracts.attention import dtype_name
from vllm_ext.contracts.platform_device import platform_name
from vllm_ext.contracts.vllm_config import (
    AttentionConfig,
    CacheConfig,
    CompilationConfig,
    DeviceConfig,
    HFConfig,
    LoadConfig,
    ModelConfig,
    ParallelConfig,
    ProfilerConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm_ext.dispatch.hf_config import DEMO_MODEL, own_max_model_len, read_hf_config
from vllm_ext.dispatch.naming_code import platform_code
from vllm_ext.dispatch.op_settings import check_custom_ops
from vllm_ext.dispatch.pooler_config import has_modules, make_pooler_config, max_seq_length
from vllm_ext.dispatch.purpose import resolve_purpose
from vllm_ext.dispatch.quantization import make_quant_config, quantization_of
from vllm_ext.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.platform import Platform

_DEFAULT_CONTEXT = 2048
"""Length limit of a model whose configuration names none, in tokens (transformers' default for Llama)."""


def require_embedded(settings: Settings, where: str = "host") -> None:
    """That the engine that comes with vllm-ext is the one to be started; ``where`` names the setting and its origin.

    Raises:
        ConfigError: another host is.
    """
    if settings.host != "embedded":
        raise ConfigError(
            f"{where} is {settings.host!r}, and the engine that comes with vllm-ext is the host 'embedded'; set host "
            "to that, or start vLLM itself; 'vllm-ext list --load' tries its plugins"
        )


def build_vllm_config(settings: Settings, platform: Platform, *, progress: bool = False) -> VllmConfig:
    """The configuration before the platform's hooks have seen it; reads the model's ``config.json``.

    ``progress`` lets the loader show a progress bar.
    """
    engine = settings.engine
    require_embedded(settings)
    check_custom_ops(settings.custom_ops)
    if engine.model == "":
        raise ConfigError(
            "engine.model is empty; give a model directory, or null for the model that comes with vllm-ext"
        )
    # Not Path.expanduser, which raises where there is no such user.
    model = DEMO_MODEL if engine.model is None else Path(os.path.expanduser(engine.model))
    hf_config = read_hf_config(model)
    model_config = _model_config(engine, model, hf_config, platform)
    return VllmConfig(
        model_config=model_config,
        cache_config=CacheConfig(
            block_size=engine.block_size,
            kv_cache_memory_bytes=engine.kv_cache_memory,
            enable_prefix_caching=engine.enable_prefix_caching,
        ),
        parallel_config=ParallelConfig(
            worker_cls=settings.worker.cls,
            worker_extension_cls=settings.worker.extension_cls or "",
            distributed_executor_backend=engine.executor,
            tensor_parallel_size=engine.tensor_parallel_size,
        ),
        scheduler_config=SchedulerConfig(
            engine.max_num_seqs,
            engine.max_num_batched_tokens,
            engine.scheduling_policy,
            scheduler_cls=engine.scheduler_cls,
        ),
        device_config=DeviceConfig(platform.device_type),
        load_config=LoadConfig(use_tqdm_on_load=progress, load_format=engine.load_format),
        attention_config=AttentionConfig(None if settings.attention.backend == "auto" else settings.attention.backend),
        compilation_config=CompilationConfig(custom_ops=list(settings.custom_ops)),
        profiler_config=ProfilerConfig(settings.profiler.torch_profiler_dir),
        quant_config=make_quant_config(engine.quantization, hf_config, model_config.dtype, platform),
    )


def _model_config(engine: EngineSettings, model: Path, hf_config: HFConfig, platform: Platform) -> ModelConfig:
    purpose = resolve_purpose(engine, hf_config.get("architectures", []), has_modules=has_modules(model))
    is_pooling = purpose.runner_type == "pooling"
    return ModelConfig(
        model=str(model),
        tokenizer=str(model),
        hf_config=hf_config,
        dtype=resolve_dtype(engine.dtype, hf_config, platform),
        max_model_len=resolve_max_model_len(engine, hf_config, platform, max_seq_length(model) if is_pooling else None),
        seed=engine.seed,
        enforce_eager=engine.enforce_eager,
        original_max_model_len=engine.max_model_len,
        tokenizer_mode=engine.tokenizer_mode,
        quantization=quantization_of(engine.quantization, hf_config),
        logits_processors=list(engine.logits_processors),
        runner_type=purpose.runner_type,
        convert_type=purpose.convert_type,
        pooler_config=make_pooler_config(engine, model, hf_config, purpose.convert_type) if is_pooling else None,
        enable_sleep_mode=_sleep_mode(engine, platform),
    )


def _sleep_mode(engine: EngineSettings, platform: Platform) -> bool:
    """Whether it is wanted; ConfigError where the platform has none."""
    if not engine.enable_sleep_mode:
        return False
    with platform_code(platform):
        is_available = platform.is_sleep_mode_available()
    if not is_available:
        raise ConfigError(
            f"engine.enable_sleep_mode is true, and {platform_name(platform)} has no sleep mode: its "
            "is_sleep_mode_available() is false. Set it to false, or choose another platform"
        )
    return True


def resolve_dtype(wanted: str, hf_config: HFConfig, platform: Platform) -> torch.dtype:
    """The dtype to compute in: what the settings say, or the checkpoint's own where the platform supports it.

    Raises:
        ConfigError: the settings name a dtype that the platform does not support.
        CheckpointError: the checkpoint names something that is no floating-point dtype.
    """
    import torch

    with platform_code(platform):
        supported = platform.supported_dtypes
    if wanted != "auto":
        dtype = getattr(torch, wanted)
        if dtype not in supported:
            raise ConfigError(
                f"engine.dtype is {wanted!r}, which {platform_name(platform)} does not support; "
                f"supported: auto, {', '.join(dtype_name(d) for d in supported)}"
            )
        return dtype  # type: ignore[no-any-return]
    own = hf_config.get("dtype", hf_config.get("torch_dtype", "float32"))
    dtype = getattr(torch, dtype_name(own), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CheckpointError(f"{hf_config.source}: dtype {own!r} is not a floating-point dtype of torch")
    return dtype if dtype in supported else supported[0]


def resolve_max_model_len(
    engine: EngineSettings, hf_config: HFConfig, platform: Platform, usual: int | None = None
) -> int:
    """Tokens of prompt and output together: the user's limit, else the model's own as far as the platform goes.

    Args:
        usual: a lower limit that the model's files ask for, and that the user may exceed.

    Raises:
        ConfigError: the user's limit is above the model's, or the platform refuses the model's own.
    """
    own = own_max_model_len(hf_config) or engine.max_model_len or _DEFAULT_CONTEXT
    if engine.max_model_len is None:
        with platform_code(platform, may_refuse=True):
            return platform.check_max_model_len(min(own, usual or own))
    if engine.max_model_len > own:
        raise ConfigError(
            f"engine.max_model_len is {engine.max_model_len}, above the {own} positions of the model "
            f"({hf_config.source}); give at most {own}"
        )
    return engine.max_model_len
