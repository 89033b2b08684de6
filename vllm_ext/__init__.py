"""vllm_ext: discovers, chooses, checks and wires the plugins of a vLLM-style inference engine.

Public names are imported on first use, so that ``import vllm_ext`` costs little and never imports torch by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vllm_ext._version import __version__
from vllm_ext.importing import without_gc

if TYPE_CHECKING:
    from vllm_ext.contracts.attention import (
        AttentionBackend,
        AttentionImpl,
        AttentionMetadata,
        AttentionMetadataBuilder,
    )
    from vllm_ext.contracts.communicator import DeviceCommunicatorBase
    from vllm_ext.contracts.custom_op import CustomOp, PluggableLayer
    from vllm_ext.contracts.endpoint import EndpointPlugin
    from vllm_ext.contracts.io_processor import IOProcessor
    from vllm_ext.contracts.linear_method import LinearMethod
    from vllm_ext.contracts.logits_processor import (
        AdapterLogitsProcessor,
        BatchUpdate,
        LogitsProcessor,
        MoveDirectionality,
    )
    from vllm_ext.contracts.lora_request import LoRARequest
    from vllm_ext.contracts.lora_resolver import LoRAResolver, LoRAResolverRegistry
    from vllm_ext.contracts.model_loader import BaseModelLoader, register_model_loader
    from vllm_ext.contracts.outputs import CompletionOutput, RequestOutput
    from vllm_ext.contracts.platform import Platform, PlatformEnum
    from vllm_ext.contracts.pooling_outputs import (
        ClassificationOutput,
        ClassificationRequestOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        PoolingOutput,
        PoolingRequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from vllm_ext.contracts.pooling_params import PoolingParams
    from vllm_ext.contracts.quantization import QuantizationConfig, register_quantization_config
    from vllm_ext.contracts.sampling_params import RequestOutputKind, SamplingParams
    from vllm_ext.contracts.scheduler import SchedulerInterface
    from vllm_ext.contracts.stat_logger import AggregateStatLoggerBase, StatLoggerBase
    from vllm_ext.contracts.stats import IterationStats, SchedulerStats
    from vllm_ext.contracts.tokenizer import TokenizerLike
    from vllm_ext.contracts.torch_op import direct_register_custom_op
    from vllm_ext.contracts.worker import WorkerBase
    from vllm_ext.dispatch.bootstrap import load_general_plugins, load_plugins_by_group
    from vllm_ext.dispatch.default_platform import current_platform
    from vllm_ext.engine.async_llm import AsyncLLM
    from vllm_ext.engine.inputs.prompts import PromptType, TextPrompt, TokensPrompt
    from vllm_ext.engine.llm import LLM
    from vllm_ext.engine.llm_engine import LLMEngine
    from vllm_ext.errors import Unavailable
    from vllm_ext.registry.models import ModelRegistry
    from vllm_ext.registry.tokenizers import TokenizerRegistry

_MODULE_OF = {
    "AdapterLogitsProcessor": "contracts.logits_processor",
    "AggregateStatLoggerBase": "contracts.stat_logger",
    "AsyncLLM": "engine.async_llm",
    "AttentionBackend": "contracts.attention",
    "AttentionImpl": "contracts.attention",
    "AttentionMetadata": "contracts.attention",
    "AttentionMetadataBuilder": "contracts.attention",
    "BaseModelLoader": "contracts.model_loader",
    "BatchUpdate": "contracts.logits_processor",
    "ClassificationOutput": "contracts.pooling_outputs",
    "ClassificationRequestOutput": "contracts.pooling_outputs",
    "CompletionOutput": "contracts.outputs",
    "CustomOp": "contracts.custom_op",
    "DeviceCommunicatorBase": "contracts.communicator",
    "EmbeddingOutput": "contracts.pooling_outputs",
    "EmbeddingRequestOutput": "contracts.pooling_outputs",
    "EndpointPlugin": "contracts.endpoint",
    "IOProcessor": "contracts.io_processor",
    "IterationStats": "contracts.stats",
    "LLM": "engine.llm",
    "LLMEngine": "engine.llm_engine",
    "LinearMethod": "contracts.linear_method",
    "LoRARequest": "contracts.lora_request",
    "LoRAResolver": "contracts.lora_resolver",
    "LoRAResolverRegistry": "contracts.lora_resolver",
    "LogitsProcessor": "contracts.logits_processor",
    "ModelRegistry": "registry.models",
    "MoveDirectionality": "contracts.logits_processor",
    "Platform": "contracts.platform",
    "PlatformEnum": "contracts.platform",
    "PluggableLayer": "contracts.custom_op",
    "PoolingOutput": "contracts.pooling_outputs",
    "PoolingParams": "contracts.pooling_params",
    "PoolingRequestOutput": "contracts.pooling_outputs",
    "PromptType": "engine.inputs.prompts",
    "QuantizationConfig": "contracts.quantization",
    "RequestOutput": "contracts.outputs",
    "RequestOutputKind": "contracts.sampling_params",
    "SamplingParams": "contracts.sampling_params",
    "SchedulerInterface": "contracts.scheduler",
    "SchedulerStats": "contracts.stats",
    "ScoringOutput": "contracts.pooling_outputs",
    "ScoringRequestOutput": "contracts.pooling_outputs",
    "StatLoggerBase": "contracts.stat_logger",
    "TextPrompt": "engine.inputs.prompts",
    "TokenizerLike": "contracts.tokenizer",
    "TokenizerRegistry": "registry.tokenizers",
    "TokensPrompt": "engine.inputs.prompts",
    "Unavailable": "errors",
    "WorkerBase": "contracts.worker",
    "current_platform": "dispatch.default_platform",
    "direct_register_custom_op": "contracts.torch_op",
    "load_general_plugins": "dispatch.bootstrap",
    "load_plugins_by_group": "dispatch.bootstrap",
    "register_model_loader": "contracts.model_loader",
    "register_quantization_config": "contracts.quantization",
}

__all__ = [
    "LLM",
    "AdapterLogitsProcessor",
    "AggregateStatLoggerBase",
    "AsyncLLM",
    "AttentionBackend",
    "AttentionImpl",
    "AttentionMetadata",
    "AttentionMetadataBuilder",
    "BaseModelLoader",
    "BatchUpdate",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "CustomOp",
    "DeviceCommunicatorBase",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EndpointPlugin",
    "IOProcessor",
    "IterationStats",
    "LLMEngine",
    "LinearMethod",
    "LoRARequest",
    "LoRAResolver",
    "LoRAResolverRegistry",
    "LogitsProcessor",
    "ModelRegistry",
    "MoveDirectionality",
    "Platform",
    "PlatformEnum",
    "PluggableLayer",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "PromptType",
    "QuantizationConfig",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SchedulerInterface",
    "SchedulerStats",
    "ScoringOutput",
    "ScoringRequestOutput",
    "StatLoggerBase",
    "TextPrompt",
    "TokenizerLike",
    "TokenizerRegistry",
    "TokensPrompt",
    "Unavailable",
    "WorkerBase",
    "__version__",
    "current_platform",
    "direct_register_custom_op",
    "load_general_plugins",
    "load_plugins_by_group",
    "register_model_loader",
    "register_quantization_config",
]


_OF_VLLM = {
    "AsyncEngineArgs": "AsyncLLM takes the engine's settings as keywords",
    "AsyncLLMEngine": "AsyncLLM stands in its place",
    "EngineArgs": "LLM takes the engine's settings as keywords",
}
"""Of public names of vLLM that are none here: what to use."""


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vllm_ext' has no attribute {name!r}{_advice(name)}")
    with without_gc():
        module = importlib.import_module(f"vllm_ext.{_MODULE_OF[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def _advice(name: str) -> str:
    """What somebody who looks for ``name`` may have meant; empty for what Python looks for by itself."""
    if name.startswith("_"):
        return ""
    if name in _OF_VLLM:
        return f"; {_OF_VLLM[name]}"
    from vllm_ext.errors import did_you_mean

    return did_you_mean(name, __all__)


def __dir__() -> list[str]:
    return sorted(__all__)
