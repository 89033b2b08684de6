"""Reading the files of a checkpoint by several threads, ahead of the one that copies.

A tensor is a view of a mapped file. What takes time is that its pages come from the disk, and into the process; a
thread that reads one byte of each has done that for the one that copies, and takes no memory of the process's own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

NUM_READERS = 4
_AHEAD_PER_READER = 4
_PAGE = 4096

Item = tuple[Path, str, torch.Tensor | Exception]
"""File, tensor's name and the tensor; or what went wrong there, with an empty name where it was no tensor's."""


def read_ahead(
    shards: Mapping[Path, list[str] | None], num_readers: int, touch_all: bool = True
) -> Generator[Item, None, None]:
    """All tensors of ``shards``: names by file, ``None`` for all that the file has.

    Unless ``touch_all``, files are opened ahead and no tensor's contents are read: for who needs only parts of them.

    Errors are given out in their place. Closing the iterator stops the threads.
    """
    unread: queue.SimpleQueue[tuple[Path, list[str] | None]] = queue.SimpleQueue()
    for shard in shards.items():
        unread.put(shard)
    num_readers = min(num_readers, len(shards))
    done: queue.Queue[Item | None] = queue.Queue(_AHEAD_PER_READER * num_readers)
    stop = threading.Event()
    readers = [
        threading.Thread(target=_read, args=(unread, done, stop, touch_all), name=f"vllm_ext-read-{i}", daemon=True)
        for i in range(num_readers)
    ]
    for reader in readers:
        reader.start()
    try:
        working = num_readers
        while working:
            item = done.get()
            if item is None:
                working -= 1
            else:
                yield item
    finally:
        stop.set()
        for reader in readers:
            while reader.is_alive():
                _drain(done)
                reader.join(0.01)


def _read(
    unread: queue.SimpleQueue[tuple[Path, list[str] | None]],
    done: queue.Queue[Item | None],
    stop: threading.Event,
    touch_all: bool,
) -> None:
    """One thread: file after file until none is left."""
    while not stop.is_set():
        try:
            path, wanted = unread.get_nowait()
        except queue.Empty:
            break
        name = ""
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys() if wanted is None else wanted:
                    if stop.is_set():
                        break
                    tensor = file.get_tensor(name)
                    if touch_all:
                        _touch(tensor)
                    done.put((path, name, tensor))
        except Exception as error:  # noqa: BLE001 - of whatever kind: who waits for this thread gets it
            done.put((path, name, error))
    done.put(None)


def _touch(tensor: torch.Tensor) -> None:
    """Read a byte of each page."""
    if tensor.numel():
        tensor.view(-1).view(torch.uint8)[::_PAGE].max()


def _drain(done: queue.Queue[Item | None]) -> None:
    try:
        while True:
            done.get_nowait()
    except queue.Empty:
        return
