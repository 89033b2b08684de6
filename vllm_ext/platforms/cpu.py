"""The in-tree platform for processors: host memory, gloo, oneDNN."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import torch

from vllm_ext.contracts.attention_selection import first_serving, selected_path
from vllm_ext.contracts.platform import AttentionSelectorConfig, Platform, PlatformEnum
from vllm_ext.platforms.host_memory import num_usable_cpus, read_host_memory
from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import VllmConfig


class CpuPlatform(Platform):
    """Computes on the processor, in host memory."""

    _enum = PlatformEnum.CPU
    device_name = "cpu"
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"

    def is_sleep_mode_available(self) -> bool:
        return True

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return platform.processor() or platform.machine()

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return read_host_memory().total

    @classmethod
    def get_current_memory_usage(cls, device: torch.device | None = None) -> float:
        return read_host_memory().used

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Never more threads than the container has processors; fewer where the user asked torch for fewer."""
        if (usable := num_usable_cpus()) < torch.get_num_threads():
            torch.set_num_threads(usable)

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        if vllm_config.parallel_config.worker_cls == "auto":
            vllm_config.parallel_config.worker_cls = "vllm_ext.worker.worker.Worker"
        # What ranks exchange, and what a plugin's quantization does, cannot be recorded.
        if vllm_config.parallel_config.world_size > 1 or vllm_config.model_config.quantization is not None:
            vllm_config.compilation_config.cudagraph_mode = "NONE"

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        return True

    @classmethod
    def get_static_graph_wrapper_cls(cls) -> str:
        return "vllm_ext.worker.kernel_graph.KernelGraphWrapper"

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        return True

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: AttentionBackendEnum | None,
        attn_selector_config: AttentionSelectorConfig,
        num_heads: int | None = None,
    ) -> str:
        if selected_backend is not None:
            return selected_path(selected_backend)
        candidates = cls.get_attn_backend_candidates(attn_selector_config)
        return first_serving(candidates, attn_selector_config, cls.get_device_capability(0), platform=cls.device_name)

    @classmethod
    def get_attn_backend_candidates(cls, attn_selector_config: AttentionSelectorConfig) -> list[AttentionBackendEnum]:
        return [AttentionBackendEnum[name] for name in ("CPU_ATTN", "SDPA", "REFERENCE")]

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "vllm_ext.distributed.gloo_communicator.GlooCommunicator"

    @classmethod
    def get_unquantized_linear_method_cls(cls) -> str:
        return "vllm_ext.layers.linear_method.PackedLinearMethod"
