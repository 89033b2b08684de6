"""Who is left when an engine with processes of its own has ended: by ``/proc``, whatever the engine says."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MARK = "TEST_OF_PROCESSES"
_PROC = Path("/proc")
_SHARED_MEMORY = Path("/dev/shm")


def marked_processes(mark: str) -> dict[int, str]:
    """Command lines of the processes, by PID, that were started with the variable ``MARK`` set to ``mark``."""
    found = {}
    for directory in _PROC.glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        except OSError:
            # It has ended meanwhile, or is another user's.
            continue
    return found


def _abandoned(before: set[Path]) -> set[Path]:
    """Files of shared memory that were not there before, and that no process beside this one uses: those of tests and
    programs that run meanwhile are theirs. So are those by which Intel's OpenMP knows its processes, and which any that
    is killed leaves.
    """
    made = {path for path in _SHARED_MEMORY.iterdir() if not path.name.startswith("__KMP_REGISTERED_LIB_")} - before
    for directory in _PROC.glob("[0-9]*") if made else ():
        if int(directory.name) == os.getpid():
            continue
        # It has ended meanwhile, or is another user's.
        with suppress(OSError):
            mapped = (directory / "maps").read_text(errors="replace")
            open_files = {os.readlink(link) for link in (directory / "fd").iterdir()}
            made -= {path for path in made if str(path) in mapped or str(path) in open_files}
    return made


def wait_until(condition: object, seconds: float = 30.0) -> bool:
    """Whether ``condition()`` comes true within that time; much, for a machine that is busy."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Whatever is started in here has to be gone soon after, and every file in shared memory with it.

    Yields: the mark of the processes.
    """
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    before = set(_SHARED_MEMORY.iterdir())
    yield mark
    if not wait_until(lambda: not marked_processes(mark)):
        left = marked_processes(mark)
        for pid in left:
            # Not beside the tests that follow.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert left == {}
    # Not looked at again once it is so: other programs' files come and go.
    assert wait_until(lambda: not _abandoned(before)), _abandoned(before)
