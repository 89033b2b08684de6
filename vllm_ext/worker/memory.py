"""How much memory the KV cache may take."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_iter

from vllm_ext.errors import EngineError
from vllm_ext.worker.op_watcher import OpWatcher

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import Platform

_SAMPLE_S = 0.002
_SMALL, _LARGE = 4, 8
"""Tokens of the two steps from which the memory of a larger one follows."""
_ALLOCATOR = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")
"""Functions of torch's module for a device, which a platform has as its own (:meth:`Platform.__getattr__`)."""


class LargestStep(NamedTuple):
    """What a step computes at most.

    Attributes:
        num_tokens: of all requests together.
        num_rows: how many of them are followed by a new token; 0 where the model pools.
        forward: from so many tokens to their hidden states.
        sample: from hidden states to a new token for each.
    """

    num_tokens: int
    num_rows: int
    forward: Callable[[int], torch.Tensor]
    sample: Callable[[torch.Tensor], None]

    def compute(self) -> None:
        hidden_states = self.forward(self.num_tokens)
        if self.num_rows:
            self.sample(hidden_states[: self.num_rows])


def measure_step(platform: Platform, device: torch.device, step: LargestStep) -> int:
    """Bytes in use on the device during the step, at most: what is in use before, and how much more the step takes.

    Processors would compute it for long: of a model with 8 billion parameters for minutes. There two small steps are
    computed, and the tensors counted that live at once: what a step takes grows with its tokens.
    """
    if device.type == "cpu" and not _has_allocator(platform):
        return int(platform.get_current_memory_usage(device)) + _extrapolated(step)
    return measure_peak(platform, device, step.compute)


def measure_peak(platform: Platform, device: torch.device, run: Callable[[], None]) -> int:
    """Bytes in use on the device while ``run`` runs, at most: what is in use before, and how much more ``run`` takes.

    The latter is what torch's allocator for the device has counted, where it counts; otherwise the platform is asked
    again and again, from a second thread.
    """
    if not _has_allocator(platform):
        return _sampled_peak(platform, device, run)
    before = int(platform.get_current_memory_usage(device))
    platform.reset_peak_memory_stats(device)
    allocated = platform.memory_allocated(device)
    run()
    return before + int(platform.max_memory_allocated(device) - allocated)


def _has_allocator(platform: Platform) -> bool:
    return all(callable(getattr(platform, name, None)) for name in _ALLOCATOR)


def _extrapolated(step: LargestStep) -> int:
    """Bytes of the tensors that the step makes, at most at once; by smaller steps."""
    small, large = (_peaks(step, size) for size in (_SMALL, _LARGE))
    return max(
        of_large + (of_large - of_small) * (size - _LARGE) // (_LARGE - _SMALL)
        for of_small, of_large, size in zip(small, large, (step.num_tokens, step.num_rows), strict=True)
    )


def _peaks(step: LargestStep, size: int) -> tuple[int, int]:
    """Bytes of the tensors that ``size`` tokens need, at most at once: up to their hidden states, and from there on."""
    with LivingTensors() as living:
        hidden_states = step.forward(size)
        of_forward = living.reset_peak()
        if step.num_rows:
            step.sample(hidden_states)
        return of_forward, living.reset_peak()


class LivingTensors(OpWatcher):
    """Counts the memory of what torch's ops make, in this thread, until it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self._peak = self._now = 0

    def reset_peak(self) -> int:
        """The most bytes at once since the last call, or since the beginning."""
        peak, self._peak = self._peak, self._now
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func._can_decompose():
            return super().__torch_dispatch__(func, types, args, kwargs)
        # Without gradients torch takes no op apart before it calls this, and what is made in between would not be seen.
        with self:
            return func.decompose(*args, **(kwargs or {}))

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        # What an op returns may be views of what it was given, or of the same memory.
        for storage in set(_storages(result)) - set(_storages((args, kwargs))):
            self._count(storage.nbytes())
            weakref.finalize(storage, self._count, -storage.nbytes())

    def _count(self, num_bytes: int) -> None:
        self._now += num_bytes
        self._peak = max(self._peak, self._now)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_iter(tree):
        # Others, such as those of torch.sparse, are made of these.
        if isinstance(leaf, torch.Tensor) and leaf.is_cpu and leaf.layout is torch.strided:
            yield leaf.untyped_storage()


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
