"""Inside a process that :mod:`vllm_ext.engine.processes.child` has started: it joins its parent, and ends with it."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Iterable
from typing import NoReturn

from vllm_ext.engine.processes.channel import Channel, Frame
from vllm_ext.importing import without_gc

_GRACE_S = 2.0
"""What the process may take to end by itself when its parent is gone."""
_LOOK_MS = 1000
"""How often to look whether the parent is still there, where a copy of it keeps the connection open."""

SAID_BY_THE_ENGINE = ("vllm_ext.managers", "vllm_ext.dispatch", "vllm_ext.plan")
"""Loggers whose words are the same in every process: the front end has said them."""


def run(descriptor: int, module: str) -> None:
    """All that the process does: ``main(channel)`` of the module.

    It joins its parent first: the import takes seconds, and whatever the parent may have met, nobody waits for it then.
    """
    channel = join(descriptor)
    try:
        with without_gc():
            imported = importlib.import_module(module)
        imported.main(channel)
    finally:
        # A process that is killed hangs up first, and is somebody's parent for a moment more.
        if _hang_up(descriptor).poll(0):
            _end_session()


def join(descriptor: int) -> Channel:
    """The channel to the process that started this one.

    Effects: an interrupt is the parent's business, and ignored here; a crash writes a traceback to standard error; a
    thread sees to it that this process does not outlive its parent, whatever it is doing then.
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    threading.Thread(target=_watch_parent, args=(end.fileno(), parent), name="vllm_ext-parent", daemon=True).start()
    return Channel(end)


def read_start(channel: Channel) -> Frame:
    """The parent's first message; SystemExit where it was gone before that."""
    try:
        return channel.receive()
    except EOFError:
        raise SystemExit(1) from None


def tell(channel: Channel, frame: Frame) -> None:
    """Send a message to the parent; where it is gone, nobody is left to hear it, and this process is about to end."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.send(frame)


def speak_as(name: str, level: int, quiet: Iterable[str] = ()) -> None:
    """Log to standard error from ``level`` on, with the name of this process before each line.

    Args:
        quiet: loggers of which only errors are shown, since another process says the same.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(levelname)s: {name} (PID {os.getpid()}): %(message)s"))
    logger = logging.getLogger("vllm_ext")
    logger.addHandler(handler)
    logger.setLevel(level)
    for quieter in quiet:
        logging.getLogger(quieter).setLevel(logging.ERROR)


def _watch_parent(descriptor: int, parent: int) -> None:
    hang_up = _hang_up(descriptor)
    while not hang_up.poll(_LOOK_MS) and os.getppid() == parent:
        continue
    # Where it waits for the parent, or is done, it ends by itself; where it computes, nobody needs that any more.
    threading.Event().wait(_GRACE_S)
    _end_session()


def _hang_up(descriptor: int) -> select.poll:
    """Tells that the other side hung up, which is always reported; not what it sends."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return poll


def _end_session() -> NoReturn:
    """End this process and what it has started, as the parent would have done."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
