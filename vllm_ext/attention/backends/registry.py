"""vLLM's place of ``AttentionBackendEnum`` and ``register_backend``."""

from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum, register_backend

__all__ = ["AttentionBackendEnum", "register_backend"]
