"""Kinds of devices and processors, and how capable a device is."""

from __future__ import annotations

import enum
import platform as python_platform
from typing import NamedTuple


class PlatformEnum(enum.Enum):
    """Kinds of devices; an out-of-tree platform is ``OOT``."""

    CUDA = enum.auto()
    ROCM = enum.auto()
    TPU = enum.auto()
    XPU = enum.auto()
    CPU = enum.auto()
    OOT = enum.auto()
    UNSPECIFIED = enum.auto()


class CpuArchEnum(enum.Enum):
    """Families of processors; ``UNKNOWN`` where the system does not say."""

    X86 = enum.auto()
    ARM = enum.auto()
    POWERPC = enum.auto()
    S390X = enum.auto()
    RISCV = enum.auto()
    OTHER = enum.auto()
    UNKNOWN = enum.auto()


_ARCHITECTURES = {
    "x86": CpuArchEnum.X86,
    "amd64": CpuArchEnum.X86,
    "i386": CpuArchEnum.X86,
    "i686": CpuArchEnum.X86,
    "arm": CpuArchEnum.ARM,
    "aarch": CpuArchEnum.ARM,
    "ppc": CpuArchEnum.POWERPC,
    "s390x": CpuArchEnum.S390X,
    "riscv": CpuArchEnum.RISCV,
}
"""By how the system's name of a machine begins."""


def cpu_architecture(machine: str) -> CpuArchEnum:
    """The family of a machine that the system calls ``machine``, as ``platform.machine()`` does."""
    name = machine.lower()
    if not name:
        return CpuArchEnum.UNKNOWN
    return next((arch for start, arch in _ARCHITECTURES.items() if name.startswith(start)), CpuArchEnum.OTHER)


class DeviceCapability(NamedTuple):
    """A device's compute capability, where it has such a thing; ordered like the tuple ``(major, minor)``. vLLM:
    ``DeviceCapability``.
    """

    major: int
    minor: int

    def as_version_str(self) -> str:
        """For people: ``8.6``."""
        return f"{self.major}.{self.minor}"

    def to_int(self) -> int:
        """As one number: 86 for ``8.6``.

        Raises:
            ValueError: the minor part has two digits, so that two capabilities would give one number.
        """
        if not 0 <= self.minor < 10:
            raise ValueError(
                f"compute capability {self.as_version_str()} has no form as one number: its minor part "
                "is not a single digit"
            )
        return 10 * self.major + self.minor


def in_wsl() -> bool:
    """Whether this is Linux inside Windows (WSL), which cannot pin host memory."""
    return "microsoft" in " ".join(python_platform.uname()).lower()
