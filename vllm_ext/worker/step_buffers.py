"""Device memory for the inputs of steps, at the same addresses in every step of the same size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


class StepBuffers:
    """Copies arrays of a step to the device. Static graphs ask for inputs that stay where they are, so that arrays of
    up to ``max_num_reqs`` rows, which those of decode steps are, always go to the same place; larger ones get memory
    of their own.
    """

    def __init__(self, max_num_reqs: int, device: torch.device) -> None:
        self._max_num_reqs = max_num_reqs
        self._device = device
        self._buffers: dict[str, tuple[npt.NDArray[np.integer], torch.Tensor]] = {}

    def add(self, name: str, dtype: npt.DTypeLike, width: int | None = None) -> None:
        """Make room for arrays ``[rows]``, or ``[rows, up to width]``, of ``dtype``."""
        shape = (self._max_num_reqs,) if width is None else (self._max_num_reqs, width)
        # Its pages are there only where something was written.
        host = np.zeros(shape, dtype=dtype)
        # On the processor, they are the same memory.
        self._buffers[name] = host, torch.from_numpy(host).to(self._device)

    def put(self, name: str, array: npt.NDArray[np.integer]) -> torch.Tensor:
        """``array`` on the device, in the dtype of ``name``; valid until the next call with that name."""
        host, on_device = self._buffers[name]
        rows = len(array)
        if rows > self._max_num_reqs:
            return torch.from_numpy(array.astype(host.dtype, copy=False)).to(self._device)
        part = (slice(rows), *map(slice, array.shape[1:]))
        host[part] = array
        placed = on_device[part]
        if self._device.type != "cpu":
            placed.copy_(torch.from_numpy(host[part]))
        return placed
