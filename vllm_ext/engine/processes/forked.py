"""What a forked copy of a process has of its parent's engines: none that it can use, and none of torch's threads."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import torch

from vllm_ext.errors import EngineError

logger = logging.getLogger(__name__)


def own_process_check() -> Callable[[], None]:
    """A function for an engine made in this process: EngineError in a copy of it, which has not what the engine waits
    for.
    """
    pid = os.getpid()

    def check() -> None:
        if os.getpid() != pid:
            raise EngineError(
                f"this engine belongs to process {pid}, and process {os.getpid()} is a copy of that; make an engine of "
                "its own in each process"
            )

    return check


class _TorchThreads(threading.local):
    """The threads that torch computes with belong to the thread that calls torch, which after a fork waits for them
    for ever.
    """

    used = False
    lost = False

    def after_fork(self) -> None:
        self.lost = self.lost or self.used


_TORCH_THREADS = _TorchThreads()
os.register_at_fork(after_in_child=_TORCH_THREADS.after_fork)


def compute_in_this_thread() -> None:
    """Before a worker is made here: where torch's threads were lost in a fork, do without, and say so."""
    if _TORCH_THREADS.lost and (num_threads := torch.get_num_threads()) > 1:
        logger.warning(
            "This process is a copy of one in which torch had computed for an engine, and has none of its threads: the "
            "engine computes with 1 thread instead of %d. For all of them, start processes by 'spawn', or make the "
            "first engine after the fork",
            num_threads,
        )
        torch.set_num_threads(1)
    _TORCH_THREADS.used = True
