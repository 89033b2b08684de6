"""The platform contract: what a hardware plugin's class answers.

Methods and attributes keep vLLM's names and defaults. An attribute that neither the platform nor torch's device module
has raises :class:`AttributeError`; vLLM answers ``None`` there, which turns a misspelt hook into a late surprise.
"""

from __future__ import annotations

import enum
import random
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.vllm_config import VllmConfig
    from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum


class PlatformEnum(enum.Enum):
    """Kinds of devices; an out-of-tree platform is ``OOT``."""

    CUDA = enum.auto()
    ROCM = enum.auto()
    TPU = enum.auto()
    XPU = enum.auto()
    CPU = enum.auto()
    OOT = enum.auto()
    UNSPECIFIED = enum.auto()


class DeviceCapability(NamedTuple):
    """A device's compute capability, where it has such a thing."""

    major: int
    minor: int

    def as_version_str(self) -> str:
        return f"{self.major}.{self.minor}"


class Platform:
    """Base class of platforms. A subclass sets at least ``_enum``, ``device_name`` and ``device_type`` and implements
    :meth:`check_and_update_config`, :meth:`get_attn_backend_cls`, :meth:`get_device_name` and
    :meth:`get_device_total_memory`. It is instantiated without arguments.
    """

    _enum: PlatformEnum
    device_name: str
    """For logs, and torch's name of a device; usually the same as ``device_type``."""
    device_type: str
    """torch's device type: ``cpu``, ``cuda``, ``privateuseone`` or the name it was renamed to."""
    dispatch_key: str = "CPU"
    """torch's dispatcher key for custom ops."""
    dist_backend: str = ""
    """torch.distributed backend of the device groups; empty stands for gloo."""
    device_control_env_var: str = ""
    """Variable that restricts which devices a process sees."""
    simple_compile_backend: str = "inductor"

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """Dtypes for weights and computation; the first one is taken when ``auto`` meets an unsupported one."""
        import torch

        return [torch.bfloat16, torch.float16, torch.float32]

    def is_cuda(self) -> bool:
        return self._enum is PlatformEnum.CUDA

    def is_rocm(self) -> bool:
        return self._enum is PlatformEnum.ROCM

    def is_tpu(self) -> bool:
        return self._enum is PlatformEnum.TPU

    def is_xpu(self) -> bool:
        return self._enum is PlatformEnum.XPU

    def is_cpu(self) -> bool:
        return self._enum is PlatformEnum.CPU

    def is_out_of_tree(self) -> bool:
        return self._enum is PlatformEnum.OOT

    def is_unspecified(self) -> bool:
        return self._enum is PlatformEnum.UNSPECIFIED

    def is_cuda_alike(self) -> bool:
        return self._enum in (PlatformEnum.CUDA, PlatformEnum.ROCM)

    # Device identity and memory -----------------------------------------------------------------------------------

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """A name for people."""
        raise _missing(cls, "get_device_name")

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """Bytes this process may use at most."""
        raise _missing(cls, "get_device_total_memory")

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        """``None`` for devices without the concept."""
        return None

    @classmethod
    def get_current_memory_usage(cls, device: torch.device | None = None) -> float:
        """Bytes in use on the device now, by anybody."""
        raise _missing(cls, "get_current_memory_usage")

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return True

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Make ``device`` the current one of this thread; nothing to do where there is a single one."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Seed the device's random generators."""
        raise _missing(cls, "manual_seed_all")

    @classmethod
    def seed_everything(cls, seed: int | None = None) -> None:
        """Seed Python, torch and the device."""
        if seed is not None:
            import torch

            random.seed(seed)
            torch.manual_seed(seed)
            cls.manual_seed_all(seed)

    @classmethod
    def inference_mode(cls) -> AbstractContextManager[None]:
        """Context in which steps run."""
        import torch

        return torch.inference_mode(mode=True)

    # Configuration hooks ------------------------------------------------------------------------------------------

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        """First hook, before the configuration exists."""

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        """Early hook for defaults; must be idempotent."""

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Last hook: refuse a configuration by raising, adjust it, set ``parallel_config.worker_cls``; idempotent."""

    @classmethod
    def check_max_model_len(cls, max_model_len: int) -> int:
        """The model's own length limit in tokens, as far as this device serves it (asked when the user set none)."""
        return max_model_len

    @classmethod
    def verify_model_arch(cls, model_arch: str) -> None:
        """Raise if this device cannot run the architecture."""

    @classmethod
    def log_warnings(cls) -> None:
        """Called once logging is configured."""

    # Implementations, by class path -------------------------------------------------------------------------------

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: AttentionBackendEnum | None,
        attn_selector_config: AttentionSelectorConfig,
        num_heads: int | None = None,
    ) -> str:
        """Class path of the attention backend for such a layer.

        Asked once for each kind of layer, while the model is built; raises :class:`ConfigError` where none can serve.
        The older signature with ``use_v1`` is deprecated and still called.

        Args:
            selected_backend: what ``attention.backend`` of the settings names, which has to be used or refused;
                ``None`` where the platform chooses.
            attn_selector_config: the layer.
            num_heads: its query heads on this rank.
        """
        return ""

    @classmethod
    def get_attn_backend_candidates(cls, attn_selector_config: AttentionSelectorConfig) -> list[AttentionBackendEnum]:
        """Backends that :meth:`get_attn_backend_cls` chooses from for such a layer, best first; for ``explain``, which
        says why each was passed over. An extension of vLLM's contract.
        """
        return []

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """Class path of the communicator."""
        return "vllm_ext.contracts.communicator.DeviceCommunicatorBase"

    @classmethod
    def get_unquantized_linear_method_cls(cls) -> str:
        """Class path of how dense weights are laid out and multiplied; an extension of vLLM's contract."""
        return "vllm_ext.layers.linear_method.UnquantizedLinearMethod"

    @classmethod
    def set_additional_forward_context(cls, **kwargs: Any) -> dict[str, Any]:
        """Values to add to the forward context of each step."""
        return {}

    def __getattr__(self, name: str) -> Any:
        """Device functions such as ``synchronize`` come from torch's module for the device type."""
        # From the class: asking the instance for a device type that is not set would end up here again.
        device_type = getattr(type(self), "device_type", None)
        if device_type and not name.startswith("_"):
            import torch

            module = getattr(torch, device_type, None)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"platform {type(self).__qualname__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<platform {type(self).__module__}.{type(self).__qualname__}>"


class AttentionSelectorConfig(NamedTuple):
    """What a platform and a backend are told about a layer before a backend is picked."""

    head_size: int
    dtype: torch.dtype
    kv_cache_dtype: str
    """``auto``: that of key and value."""
    block_size: int | None
    """Tokens in a block of the KV cache; ``None`` where that is still to be chosen."""
    use_mla: bool = False
    has_sink: bool = False
    use_sparse: bool = False
    use_mm_prefix: bool = False
    use_per_head_quant_scales: bool = False
    attn_type: str = "decoder"
    has_sliding_window: bool = False
    use_non_causal: bool = False
    use_batch_invariant: bool = False
    use_kv_connector: bool = False
    use_pcp: bool = False
    use_adaptive_verification: bool = False
    use_dcp: bool = False
    use_rswa: bool = False
    """The fields ``use_…`` are vLLM's; layers of this engine leave them at their defaults."""
    has_logits_soft_cap: bool = False
    """An extension of vLLM's contract."""
    has_alibi_slopes: bool = False
    """An extension of vLLM's contract."""


class UnspecifiedPlatform(Platform):
    """Stands where no platform activated; an engine cannot be built on it."""

    _enum = PlatformEnum.UNSPECIFIED
    device_name = ""
    device_type = ""


def _missing(cls: type[Platform], method: str) -> NotImplementedError:
    return NotImplementedError(f"platform {cls.__module__}.{cls.__qualname__} does not implement {method}()")
