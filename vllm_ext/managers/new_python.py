"""A new Python that sees the same packages as this one, in a session and a process group of its own, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

KEPT_OUTPUT_BYTES = 16 * 1024
"""How much of a child's output is kept: its end."""

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl()."""
_TIMER_RAN_OUT = re.compile(r"^Timeout \(\d+:\d\d:\d\d", re.MULTILINE)
"""How faulthandler, by whose timer a child ends itself at its time limit, begins its last words."""


def start_python(code: str, arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Run ``code``, for which ``sys.argv[1:]`` begins with ``arguments``.

    It is no copy of this process: nothing but environment and path is inherited, and the program that was started is
    not run again. An interrupt of the terminal does not reach it.

    Args:
        options: of :class:`subprocess.Popen`.

    Raises:
        OSError: it cannot be started.
    """
    code = f"import sys; sys.path[:] = sys.argv[{len(arguments) + 1}:]; {code}"
    # -P: the current directory is on the path only where it is on ours.
    command = [sys.executable, "-P", "-c", code, *arguments, *(entry for entry in sys.path if isinstance(entry, str))]
    return subprocess.Popen(command, start_new_session=True, **options)


def end_with_parent() -> None:
    """Where the system can, let it kill this process when its parent ends, however that ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process of :func:`start_python` has ended; it is not reaped."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        # Where the whole program ignores SIGCHLD, the system has reaped it.
        return True


def end_group(process: subprocess.Popen[bytes]) -> int:
    """Kill what is left of the process group that :func:`start_python` began, and reap the process; returns its exit
    code.
    """
    # Not reaped before that, so that the group's number cannot be another's by now.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def describe_end(code: int | None, output: str, timeout_s: float) -> str:
    """How a process that loads plugins ended before it answered, with ``it`` as the subject.

    Args:
        code: its exit code; ``None`` where it was killed for being too late.
        output: what it wrote.
        timeout_s: the time limit, by which it may have ended itself.
    """
    if code is None or (code == 1 and _TIMER_RAN_OUT.search(output)):
        return f"it did not finish within {timeout_s:g} s"
    if code < 0:
        return f"it ended the process by {signal_name(-code)}"
    return f"it ended the process with exit code {code}"


def signal_name(number: int) -> str:
    """``SIGTERM``; ``signal 40`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
