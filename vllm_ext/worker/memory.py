"""How much memory the KV cache may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vllm_ext.errors import EngineError

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import Platform

_SAMPLE_S = 0.002


def measure_peak(platform: Platform, device: torch.device, run: Callable[[], None]) -> int:
    """Bytes in use on the device while ``run`` runs, at most, as sampled from a second thread."""
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
