"""A LoRA resolver: adapters are the folders of one directory."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from vllm_ext import LoRARequest, LoRAResolver
from vllm_ext.contracts.lora_resolver import adapter_directory
from vllm_ext_dummy_platform import calls


class MyDummyLoRAResolver(LoRAResolver):
    """Looks into the directory that the variable ``DUMMY_ADAPTERS`` names."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        calls["resolve_lora"] += 1
        root = os.environ.get("DUMMY_ADAPTERS", Path(__file__).parent / "adapters")
        directory = adapter_directory(root, lora_name)
        if directory is None:
            return None
        return LoRARequest(lora_name, 1 + zlib.crc32(lora_name.encode()), str(directory), base_model_name)
