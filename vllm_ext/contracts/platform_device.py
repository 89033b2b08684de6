"""The part of the platform contract that is about the device: its kind, identity, capability and memory."""

from __future__ import annotations

import os
import platform as python_platform
import random
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from vllm_ext.contracts.device import CpuArchEnum, DeviceCapability, PlatformEnum, cpu_architecture, in_wsl
from vllm_ext.errors import dotted_path

if TYPE_CHECKING:
    import torch


class PlatformDevice:
    """What a platform says of its device, and does to it. Names and defaults are those of vLLM's ``Platform``.

    A ``device_id`` is torch's number of a device, from 0 on, unless a method says otherwise. A method that has no
    default and is not implemented raises NotImplementedError with the platform and the method in its text.
    """

    _enum: PlatformEnum
    device_name: str
    """For logs, and torch's name of a device; usually the same as ``device_type``."""
    device_type: str
    """torch's device type: ``cpu``, ``cuda``, ``privateuseone`` or the name it was renamed to."""
    _chosen_as: tuple[str, str] = ("", "")
    """Set by the engine: the plugin's name, and that with its distribution; see :func:`platform_name`."""
    device_control_env_var: str = ""
    """Variable that restricts which devices a process sees; empty where there is none."""

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """Dtypes for weights and computation; the first one is taken when ``auto`` meets an unsupported one."""
        import torch

        return [torch.bfloat16, torch.float16, torch.float32]

    def is_cuda(self) -> bool:
        """Whether ``_enum`` is CUDA."""
        return self._enum is PlatformEnum.CUDA

    def is_rocm(self) -> bool:
        """Whether ``_enum`` is ROCM."""
        return self._enum is PlatformEnum.ROCM

    def is_tpu(self) -> bool:
        """Whether ``_enum`` is TPU."""
        return self._enum is PlatformEnum.TPU

    def is_xpu(self) -> bool:
        """Whether ``_enum`` is XPU."""
        return self._enum is PlatformEnum.XPU

    def is_cpu(self) -> bool:
        """Whether ``_enum`` is CPU: the in-tree platform, not any that computes on the processor."""
        return self._enum is PlatformEnum.CPU

    def is_out_of_tree(self) -> bool:
        """Whether ``_enum`` is OOT; then custom ops run ``forward_oot``."""
        return self._enum is PlatformEnum.OOT

    def is_unspecified(self) -> bool:
        """Whether it stands for no platform at all."""
        return self._enum is PlatformEnum.UNSPECIFIED

    def is_cuda_alike(self) -> bool:
        """Whether ``_enum`` is CUDA or ROCM."""
        return self._enum in (PlatformEnum.CUDA, PlatformEnum.ROCM)

    def is_sleep_mode_available(self) -> bool:
        """Whether its worker can give its memory back and go on later; an out-of-tree platform says so itself."""
        return self._enum in (PlatformEnum.CUDA, PlatformEnum.ROCM, PlatformEnum.XPU)

    def get_max_output_tokens(self, prompt_len: int) -> int:
        """Tokens that a request may generate after a prompt of ``prompt_len`` tokens; asked for each request, whose
        ``max_tokens`` is lowered to it. Less than 1 refuses the request.
        """
        return sys.maxsize

    # Identity -----------------------------------------------------------------------------------------------------

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """A name for people, of the device that torch numbers ``device_id``."""
        raise not_implemented(cls, "get_device_name")

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        """The compute capability of the device that torch numbers ``device_id``; ``None`` for devices without the
        concept.
        """
        return None

    @classmethod
    def has_device_capability(cls, capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        """Whether the device that torch numbers ``device_id`` has at least ``capability``, ``(8, 6)`` or 86; False
        without the concept. ValueError where a number is asked for and its minor part has two digits.
        """
        return (own := cls._comparable_to(capability, device_id)) is not None and own >= capability  # type: ignore[operator]

    @classmethod
    def is_device_capability(cls, capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        """Whether the device that torch numbers ``device_id`` has exactly ``capability``, ``(8, 6)`` or 86; False
        without the concept. ValueError as of :meth:`has_device_capability`.
        """
        return (own := cls._comparable_to(capability, device_id)) is not None and own == capability

    @classmethod
    def is_device_capability_family(cls, capability: int, device_id: int = 0) -> bool:
        """Whether the device that torch numbers ``device_id`` has the major part of ``capability``, given as 100 or 103
        for 10; False without the concept.
        """
        own = cls.get_device_capability(device_id)
        return own is not None and own.major == capability // 10

    @classmethod
    def _comparable_to(cls, capability: tuple[int, int] | int, device_id: int) -> DeviceCapability | int | None:
        """The device's capability in the form of ``capability``."""
        own = cls.get_device_capability(device_id)
        return own.to_int() if own is not None and isinstance(capability, int) else own

    @classmethod
    def get_cpu_architecture(cls) -> CpuArchEnum:
        """The family of this machine's processor."""
        return cpu_architecture(python_platform.machine())

    # Which device -------------------------------------------------------------------------------------------------

    @classmethod
    def logical_device_id_to_visible_device_id(cls, device_id: int) -> int:
        """From a worker's ``local_rank``, here ``device_id``, to torch's number of its device: the same, unless a
        platform overrides it.
        """
        return device_id

    @classmethod
    def visible_device_id_to_physical_device_id(cls, device_id: int) -> int:
        """From torch's number of a device, ``device_id``, to the machine's, by the list in ``device_control_env_var``;
        the same where that is not set.

        Raises:
            ValueError: the list has no such entry, or one that is no device.
        """
        listed = os.environ.get(cls.device_control_env_var, "") if cls.device_control_env_var else ""
        if not listed.strip():
            return device_id
        entries = listed.split(",")
        if not 0 <= device_id < len(entries):
            raise ValueError(
                f"device {device_id} is asked for, and {cls.device_control_env_var} shows "
                f"{len(entries)} ({listed!r}); let it list more devices, or use fewer workers"
            )
        return cls.device_control_id_to_physical_device_id(entries[device_id].strip())

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """One entry of ``device_control_env_var`` as the machine's number of a device; a platform whose entries are
        names overrides it.

        Raises:
            ValueError: it is no number.
        """
        try:
            return int(device_id)
        except ValueError:
            raise ValueError(
                f"{cls.device_control_env_var} names device {device_id!r}; platform {dotted_path(cls)} takes numbers"
            ) from None

    @classmethod
    def device_id_to_physical_device_id(cls, device_id: int) -> int:
        """From a worker's ``local_rank``, here ``device_id``, to the machine's number of its device; ValueError as of
        :meth:`visible_device_id_to_physical_device_id`.
        """
        return cls.visible_device_id_to_physical_device_id(cls.logical_device_id_to_visible_device_id(device_id))

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Make ``device`` the current one of this thread. To be implemented for all but the processor, of which there
        is one.
        """
        import torch

        if torch.device(device).type != "cpu":
            raise not_implemented(cls, "set_device")

    # Memory and computation ---------------------------------------------------------------------------------------

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """Bytes that this process may use at most of the device that torch numbers ``device_id``."""
        raise not_implemented(cls, "get_device_total_memory")

    @classmethod
    def get_current_memory_usage(cls, device: torch.device | None = None) -> float:
        """Bytes in use on ``device`` now, by anybody, or on the current one; asked by the in-tree worker."""
        raise not_implemented(cls, "get_current_memory_usage")

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Whether host memory can be pinned for transfers to the device."""
        return not in_wsl()

    @classmethod
    def check_if_supports_dtype(cls, dtype: torch.dtype) -> None:
        """ValueError where this machine's device cannot compute in ``dtype``, though ``supported_dtypes`` has it; asked
        by the worker once its device is there, and a ConfigError of the engine. Everything passes by default (in vLLM,
        to be implemented).
        """

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Seed the random generators of all devices with ``seed``."""
        raise not_implemented(cls, "manual_seed_all")

    @classmethod
    def seed_everything(cls, seed: int | None = None) -> None:
        """Seed Python, torch and the device with ``seed``; ``None`` leaves them as they are. An extension of vLLM's
        contract, whose older releases had it.
        """
        if seed is not None:
            import torch

            random.seed(seed)
            torch.manual_seed(seed)
            cls.manual_seed_all(seed)

    @classmethod
    def inference_mode(cls) -> AbstractContextManager[None]:
        """Context in which steps run; nothing in it records gradients."""
        import torch

        return torch.inference_mode(mode=True)


def platform_name(platform: PlatformDevice) -> str:
    """``platform 'npu'``, by the name of the plugin that it was chosen as: the one that settings take, and by which it
    is uninstalled. One that no plugin brought has its ``device_name`` alone.
    """
    return f"platform {(platform._chosen_as[0] or platform.device_name)!r}"


def not_implemented(cls: type, method: str) -> NotImplementedError:
    """The error of a method that a platform has to implement."""
    return NotImplementedError(f"platform {dotted_path(cls)} does not implement {method}()")
