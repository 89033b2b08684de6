"""What comes with the vLLM that is the host, and that no entry point declares."""

from __future__ import annotations

from vllm_ext.contracts.groups import VLLM_BUILTIN_PLATFORMS, VLLM_BUILTIN_PLATFORMS_GROUP
from vllm_ext.discovery.providers import Provider
from vllm_ext.discovery.records import ExtensionRecord


def builtin_platforms(vllm: Provider) -> list[ExtensionRecord]:
    """vLLM's own platforms, as if they were declared like others; ``vllm`` is the distribution that provides it."""
    return [
        ExtensionRecord(
            VLLM_BUILTIN_PLATFORMS_GROUP,
            name,
            f"vllm.platforms:{name}_platform_plugin",
            vllm.distribution,
            vllm.version,
            vllm.location,
        )
        for name in VLLM_BUILTIN_PLATFORMS
    ]
