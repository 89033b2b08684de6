"""How much memory the KV cache may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vllm_ext.errors import EngineError

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import Platform

_SAMPLE_S = 0.002


def measure_peak(platform: Platform, device: torch.device, run: Callable[[], None]) -> int:
    """Bytes in use on the device while ``run`` runs, at most: what is in use before, and how much more ``run`` takes.

    The latter is what torch's allocator for the device has counted, where it counts; on the processor what the system
    says of this process; otherwise the platform is asked again and again, from a second thread.
    """
    before = int(platform.get_current_memory_usage(device))
    if all(callable(getattr(platform, name, None)) for name in _ALLOCATOR):
        return before + _growth_of_allocator(platform, device, run)
    if device.type == "cpu" and _reset_resident_peak():
        resident = _resident("VmRSS")
        run()
        return before + max(0, _resident("VmHWM") - resident)
    return _sampled_peak(platform, device, run)


_ALLOCATOR = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")
"""Functions of torch's module for a device, which a platform has as its own (:meth:`Platform.__getattr__`)."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _growth_of_allocator(platform: Platform, device: torch.device, run: Callable[[], None]) -> int:
    platform.reset_peak_memory_stats(device)
    allocated = platform.memory_allocated(device)
    run()
    return int(platform.max_memory_allocated(device) - allocated)


def _reset_resident_peak() -> bool:
    """Let Linux forget the largest size that this process had in memory; False where that cannot be done."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    """Bytes of this process in memory: ``VmRSS`` now, ``VmHWM`` at most."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise EngineError(f"{_STATUS} does not say {field}, by which the memory of a step is measured")


def _sampled_peak(platform: Platform, device: torch.device, run: Callable[[], None]) -> int:
    done = threading.Event()
    peak = [platform.get_current_memory_usage(device)]

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            peak[0] = max(peak[0], platform.get_current_memory_usage(device))

    sampler = threading.Thread(target=sample, name="vllm_ext-memory", daemon=True)
    sampler.start()
    try:
        run()
    finally:
        done.set()
        sampler.join()
    return int(max(peak[0], platform.get_current_memory_usage(device)))


def available_kv_cache_memory(total: int, used: int, wanted: int | None) -> int:
    """Bytes for the KV cache: ``wanted`` by the user, else half of what ``used`` leaves free of ``total``.

    Raises:
        EngineError: ``wanted`` is more than is free.
    """
    free = max(0, total - used)
    if wanted is None:
        return free // 2
    if wanted > free:
        raise EngineError(
            f"engine.kv_cache_memory asks for {wanted} bytes; the device has {free} free of {total}. "
            f"Set it to at most {free}, or leave it out"
        )
    return wanted
