"""Memory and processors of this machine, as far as its control groups let this process have them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")


class HostMemory(NamedTuple):
    """Bytes: what this process may use at most, and what is in use of it."""

    total: int
    used: int


def read_host_memory(root: Path = _ROOT) -> HostMemory:
    """The tightest limit of machine and control groups; page cache that the kernel would give back counts as free.

    Args:
        root: where ``proc`` and ``sys`` are; for tests.
    """
    machine = _machine_memory(root)
    limits = [machine, *_group_memory(root)]
    total = min(limit.total for limit in limits)
    free = min(limit.total - limit.used for limit in limits)
    return HostMemory(total, total - max(0, min(free, total)))


def num_usable_cpus(root: Path = _ROOT) -> int:
    """Processors this process may run on, and not more than its control groups grant time on."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(int(quota) for quota in _cpu_quotas(root))]))


def _machine_memory(root: Path) -> HostMemory:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line}
        return HostMemory(values["MemTotal"], values["MemTotal"] - values["MemAvailable"])
    except (OSError, KeyError, ValueError, IndexError):
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        free = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in os.sysconf_names else total
        return HostMemory(total, total - free)


def _group_memory(root: Path) -> Iterator[HostMemory]:
    """Every control group above this process that has a memory limit, of version 2 or 1."""
    for directory in _group_directories(root, ""):
        limit = _read_int(directory / "memory.max")
        if limit is not None:
            used = _read_int(directory / "memory.current") or 0
            yield HostMemory(limit, max(0, used - _read_stat(directory, "inactive_file")))
    for directory in _group_directories(root, "memory"):
        limit = _read_int(directory / "memory.limit_in_bytes")
        if limit is not None:
            used = _read_int(directory / "memory.usage_in_bytes") or 0
            yield HostMemory(limit, max(0, used - _read_stat(directory, "total_inactive_file")))


def _cpu_quotas(root: Path) -> Iterator[float]:
    for directory in _group_directories(root, ""):
        words = _read_text(directory / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            yield int(words[0]) / int(words[1])
    for directory in _group_directories(root, "cpu"):
        quota, period = _read_int(directory / "cpu.cfs_quota_us"), _read_int(directory / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            yield quota / period


def _group_directories(root: Path, controller: str) -> Iterator[Path]:
    """This process's group of ``controller`` (empty: version 2) and those around it, as far as they are visible.

    In a container the path that ``/proc`` names may not exist: then the mounted root is the container's own group.
    """
    mount = root / "sys/fs/cgroup" / controller
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        directory = mount / path.lstrip("/")
        while directory != mount:
            yield directory
            directory = directory.parent
        yield mount
        return


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _read_int(path: Path) -> int | None:
    """The number in a file; ``None`` where there is none (``max``, or no such file)."""
    text = _read_text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _read_stat(directory: Path, key: str) -> int:
    for line in _read_text(directory / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
