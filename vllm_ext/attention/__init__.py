"""The attention layer and the in-tree attention backends."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "_Backend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum

    warnings.warn(
        "vllm_ext.attention._Backend is deprecated, and vllm_ext 0.3.0 will not have it; use AttentionBackendEnum and "
        "register_backend of vllm_ext.attention.backends.registry",
        DeprecationWarning,
        stacklevel=2,
    )
    return AttentionBackendEnum
