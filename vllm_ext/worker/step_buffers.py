"""Device memory for the inputs of steps, at the same addresses in every step of the same size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

_Place = tuple[npt.NDArray[np.integer], torch.Tensor]
"""Memory of the host, and on the device; on the processor they are the same."""


class StepBuffers:
    """Copies arrays of a step to the device. Static graphs ask for inputs that stay where they are, so that arrays of
    up to ``max_num_reqs`` rows, which those of decode steps are, always go to the same place; larger ones get memory
    of their own.
    """

    def __init__(self, max_num_reqs: int, device: torch.device) -> None:
        self._max_num_reqs = max_num_reqs
        self._device = device
        self._buffers: dict[str, _Place] = {}
        # The part of each that was last used: most steps are as large as the one before, and a view takes its time.
        self._used: dict[str, _Place] = {}

    def add(self, name: str, dtype: npt.DTypeLike, width: int | None = None) -> None:
        """Make room for arrays ``[rows]``, or ``[rows, up to width]``, of ``dtype``; MemoryError where none is."""
        shape = (self._max_num_reqs,) if width is None else (self._max_num_reqs, width)
        # Its pages are there only where something was written.
        try:
            host = np.zeros(shape, dtype=dtype)
        except ValueError as error:
            # What no address reaches is of the wrong size to numpy.
            raise MemoryError(f"Unable to allocate an array with shape {shape}: {error}") from error
        self._buffers[name] = host, torch.from_numpy(host).to(self._device)

    def put(self, name: str, array: npt.NDArray[np.integer]) -> torch.Tensor:
        """``array`` on the device, in the dtype of ``name``; valid until the next call with that name."""
        used = self._used.get(name)
        if used is None or used[0].shape != array.shape:
            host, on_device = self._buffers[name]
            if len(array) > self._max_num_reqs:
                return torch.from_numpy(array.astype(host.dtype, copy=False)).to(self._device)
            part = tuple(map(slice, array.shape))
            used = self._used[name] = host[part], on_device[part]
        host, on_device = used
        host[...] = array
        if self._device.type != "cpu":
            on_device.copy_(torch.from_numpy(host))
        return on_device
