"""A process that an engine starts: a new Python with a channel to this one, which ends when this one does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping

from vllm_ext.engine.processes.channel import Channel
from vllm_ext.errors import EngineError
from vllm_ext.managers.new_python import end_group, signal_name, start_python

_END_S = 2.0
"""What the system may take to tell how a process ended that has hung up."""
_MAIN = "from vllm_ext.engine.processes.child_main import run; run(int(sys.argv[1]), sys.argv[2])"


class ChildProcess:
    """Starts ``main(channel)`` of a module as :func:`start_python` does. What it writes to standard output goes to
    standard error.

    Args:
        name: for messages, such as ``worker 1``.
        module: has the function ``main``, which is called with the other end of :attr:`channel`.
        environ: variables to set besides those of this process.

    Raises:
        EngineError: no process can be started.
    """

    def __init__(self, name: str, module: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self.is_ending = False
        """Whether it is meant to end, so that its end is no fault."""
        self.channel, theirs = Channel.pair()
        descriptor = theirs.fileno()
        try:
            self._process = start_python(
                _MAIN,
                [str(descriptor), module],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(descriptor,),
                env=os.environ | environ,
            )
        except OSError as error:
            self.channel.close()
            raise EngineError(f"{name} cannot be started: {error}") from error
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._has_ended = threading.Event()
        self._watcher: threading.Thread | None = None

    def watch(self, on_end: Callable[[ChildProcess], None]) -> None:
        """Call ``on_end``, in a thread of its own, as soon as the process has ended; what it started ends with it."""
        self._watcher = threading.Thread(
            target=self._watch, args=(on_end,), name=f"vllm_ext-watch-{self.name}", daemon=True
        )
        self._watcher.start()

    @property
    def is_alive(self) -> bool:
        return not self._has_ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Whether it ends within ``timeout_s`` seconds."""
        return self._has_ended.wait(timeout_s)

    def kill(self) -> None:
        """End the process, and all of its session, at once."""
        self.is_ending = True
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self, deadline: float) -> None:
        """Let it end by itself until ``deadline`` (of ``time.monotonic()``), then kill it; returns when it is gone.

        It has been told already. May be called twice.
        """
        self.is_ending = True
        if not self.wait(max(0.0, deadline - time.monotonic())):
            self.kill()
            self._has_ended.wait()
        self.channel.close()

    def describe_end(self) -> str:
        """How it ended: ``was killed by SIGKILL``. Waits a moment where it is only known to have hung up."""
        self.wait(_END_S)
        code = self._process.returncode
        if code is None:
            return "has closed its connection"
        return f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"

    def _watch(self, on_end: Callable[[ChildProcess], None]) -> None:
        # Where the whole program ignores SIGCHLD, the system has reaped it.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        end_group(self._process)
        self._has_ended.set()
        on_end(self)


def end_all(children: list[ChildProcess], grace_s: float) -> None:
    """End several that were told to, all within ``grace_s`` seconds."""
    deadline = time.monotonic() + grace_s
    for child in children:
        child.end(deadline)
