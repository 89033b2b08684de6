"""The platform: what the device is, and which classes work for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vllm_ext import Platform, PlatformEnum
from vllm_ext.attention.backends.registry import AttentionBackendEnum, register_backend

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import AttentionSelectorConfig
    from vllm_ext.contracts.vllm_config import VllmConfig

PACKAGE = "vllm_ext_dummy_platform"


class MyDummyPlatform(Platform):
    """A device that is the host itself."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "dummy device"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    @classmethod
    def get_current_memory_usage(cls, device: torch.device | None = None) -> float:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return cls.get_device_total_memory() - int(line.split()[1]) * 1024
        raise RuntimeError("/proc/meminfo does not say how much memory is available")

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        torch.manual_seed(seed)

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        # Registering the same again changes nothing, so that it may run any number of times.
        register_backend("DUMMY_ATTN", f"{PACKAGE}.my_dummy_attention.MyDummyAttention")

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        # May run more than once, and the user may have named a worker.
        if vllm_config.parallel_config.worker_cls == "auto":
            vllm_config.parallel_config.worker_cls = f"{PACKAGE}.my_dummy_worker.MyDummyWorker"

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: AttentionBackendEnum | None,
        attn_selector_config: AttentionSelectorConfig,
        num_heads: int | None = None,
    ) -> str:
        # What the user names is used, or the engine says why not; the choice is this platform's where nothing is named.
        return (selected_backend or AttentionBackendEnum["DUMMY_ATTN"]).get_path()

    @classmethod
    def get_attn_backend_candidates(cls, attn_selector_config: AttentionSelectorConfig) -> list[AttentionBackendEnum]:
        # For the record only: "vllm-ext explain attention" shows what else could serve.
        return [AttentionBackendEnum["DUMMY_ATTN"], AttentionBackendEnum.SDPA]

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return f"{PACKAGE}.my_dummy_device_communicator.MyDummyDeviceCommunicator"
