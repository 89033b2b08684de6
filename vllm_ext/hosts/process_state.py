"""The state of this process that a command started in its place inherits, as it was before plugins were called here."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

_SIGNALS = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]


@contextlib.contextmanager
def process_state_kept() -> Iterator[None]:
    """Whatever is called inside the block, afterwards environment, current directory, file mode mask, blocked signals
    and signal handlers are those of before.

    Effects: outside the main thread, which alone may set them, handlers stay as they are.
    """
    environ = dict(os.environ)
    folder = _open_current_folder()
    mask = os.umask(0o077)
    os.umask(mask)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # None is one that was not set by Python, which cannot set it either.
            if handler is not None and signal.getsignal(number) != handler:
                with contextlib.suppress(ValueError):
                    signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.umask(mask)
        if folder is not None:
            os.fchdir(folder)
            os.close(folder)
        if dict(os.environ) != environ:
            os.environ.clear()
            os.environ.update(environ)


def _open_current_folder() -> int | None:
    """A descriptor of it; ``None`` where it was removed, or may not be read."""
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
