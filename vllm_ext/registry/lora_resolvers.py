"""LoRA resolvers by name, in the order of their registration; what plugins use is in ``contracts/lora_resolver.py``."""

from __future__ import annotations

from typing import Any

from vllm_ext.registry.base import Registry

LORA_RESOLVERS: Registry[Any] = Registry("LoRA resolver")
