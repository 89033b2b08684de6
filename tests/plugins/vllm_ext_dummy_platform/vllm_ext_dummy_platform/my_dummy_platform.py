"""The platform: what the device is, and which classes work for it."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vllm_ext import Platform, PlatformEnum
from vllm_ext.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm_ext.contracts.platform import DeviceCapability

if TYPE_CHECKING:
    from vllm_ext import SamplingParams
    from vllm_ext.contracts.platform import AttentionSelectorConfig
    from vllm_ext.contracts.vllm_config import VllmConfig

PACKAGE = "vllm_ext_dummy_platform"
MAX_TOKENS = 1 << 16
"""What the device can keep in mind of one request."""

logger = logging.getLogger(__name__)


class MyDummyPlatform(Platform):
    """A device that is the host itself."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"
    device_control_env_var = "DUMMY_VISIBLE_DEVICES"
    supported_quantization = ("int8", "dummy_grid")

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "dummy device"

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        return DeviceCapability(1, 2)

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """An entry of ``DUMMY_VISIBLE_DEVICES`` is ``dummy0``."""
        return super().device_control_id_to_physical_device_id(device_id.removeprefix("dummy"))

    @classmethod
    def logical_device_id_to_visible_device_id(cls, device_id: int) -> int:
        """There is one device, which all workers of a machine share."""
        return 0

    @classmethod
    def visible_device_id_to_physical_device_id(cls, device_id: int) -> int:
        number = super().visible_device_id_to_physical_device_id(device_id)
        logger.info("torch's device %d is dummy%d", device_id, number)
        return number

    @classmethod
    def device_id_to_physical_device_id(cls, device_id: int) -> int:
        number = super().device_id_to_physical_device_id(device_id)
        logger.info("the worker %d has dummy%d", device_id, number)
        return number

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
    def set_device(cls, device: torch.device) -> None:
        """There is one."""

    @classmethod
    def check_if_supports_dtype(cls, dtype: torch.dtype) -> None:
        if dtype.itemsize > 4:
            raise ValueError(f"the dummy device does not compute in {dtype}")

    def is_sleep_mode_available(self) -> bool:
        return True

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        torch.manual_seed(seed)

    @classmethod
    def seed_everything(cls, seed: int | None = None) -> None:
        logger.info("seeds are %s", seed)
        super().seed_everything(seed)

    @classmethod
    def inference_mode(cls) -> AbstractContextManager[None]:
        return torch.no_grad()

    # Configuration, in the order of the calls ------------------------------------------------------------------------

    @classmethod
    def log_warnings(cls) -> None:
        logger.info("the dummy device is the host's processor: expect no speed")

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        # Registering the same again changes nothing, so that it may run any number of times.
        register_backend("DUMMY_ATTN", f"{PACKAGE}.my_dummy_attention.MyDummyAttention")

    @classmethod
    def validate_environ(cls, hard_fail: bool) -> None:
        unknown = [name for name in os.environ if name.startswith("DUMMY_") and name != cls.device_control_env_var]
        if unknown and hard_fail:
            raise ValueError(f"unknown variables of the dummy device: {unknown}")
        if unknown:
            logger.warning("unknown variables of the dummy device: %s", unknown)

    @classmethod
    def check_max_model_len(cls, max_model_len: int) -> int:
        return min(max_model_len, MAX_TOKENS)

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        super().verify_quantization(quant)
        logger.info("%s weights are made whole before they are used", quant)

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        vllm_config.additional_config.setdefault("dummy_tokens", MAX_TOKENS)

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        return False

    @classmethod
    def verify_model_arch(cls, model_arch: str) -> None:
        if "Vision" in model_arch:
            raise ValueError(f"the dummy device sees nothing, so it cannot run {model_arch}")

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        # May run more than once, and the user may have named a worker.
        if vllm_config.parallel_config.worker_cls == "auto":
            pools = vllm_config.model_config.runner_type == "pooling"
            worker = "my_dummy_pooling_worker.MyDummyPoolingWorker" if pools else "my_dummy_worker.MyDummyWorker"
            vllm_config.parallel_config.worker_cls = f"{PACKAGE}.{worker}"

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        return True

    # Beside the worker -----------------------------------------------------------------------------------------------

    @classmethod
    def import_kernels(cls) -> None:
        """Compiled kernels would be imported here; this device has none."""

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """Every size is as good as another one."""

    @classmethod
    def register_custom_kv_cache_specs(cls, vllm_config: VllmConfig) -> None:
        """Keys and values are stored as everywhere."""

    # Requests and steps ----------------------------------------------------------------------------------------------

    @classmethod
    def get_max_output_tokens(cls, prompt_len: int) -> int:
        return MAX_TOKENS - prompt_len

    @classmethod
    def validate_request(cls, processed_inputs: dict[str, Any], params: SamplingParams) -> None:
        if len(processed_inputs["prompt_token_ids"]) >= MAX_TOKENS:
            raise ValueError(f"the dummy device reads at most {MAX_TOKENS} tokens")

    @classmethod
    def set_additional_forward_context(cls, **kwargs: Any) -> dict[str, Any]:
        return {"dummy_num_tokens": kwargs["num_tokens"]}

    # Implementations, by class path ----------------------------------------------------------------------------------

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

    @classmethod
    def get_unquantized_linear_method_cls(cls) -> str:
        """Weights stay as the checkpoint has them."""
        return "vllm_ext.layers.linear_method.UnquantizedLinearMethod"
