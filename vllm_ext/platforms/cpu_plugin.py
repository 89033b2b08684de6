"""Entry point of the in-tree cpu platform; imports nothing that is slow."""

from __future__ import annotations


def register() -> str:
    """The cpu is always there."""
    return "vllm_ext.platforms.cpu.CpuPlatform"
