"""Standard output, which says of itself that it is what cannot be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TextIO


class OutputFault(OSError):
    """Standard output cannot be written. A pipe that nobody reads is a BrokenPipeError still."""

    def __str__(self) -> str:
        return f"standard output cannot be written: {self.strerror}"


class Output:
    """A text stream that raises :class:`OutputFault`; the rest is as with ``stream``.

    Else a full disk were an error without a place, as from a plugin, wherever more is written than a buffer holds.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``; returns the number of its characters."""
        with self._naming_it():
            return self._stream.write(text)

    def write_bytes(self, data: bytes) -> None:
        """Write ``data`` after all text so far, and flush."""
        with self._naming_it():
            self._stream.flush()
            self._stream.buffer.write(data)
            self._stream.buffer.flush()

    def flush(self) -> None:
        """Write what is in the stream's buffer."""
        with self._naming_it():
            self._stream.flush()

    def close(self) -> None:
        """Flush and close the stream."""
        with self._naming_it():
            self._stream.close()

    @contextlib.contextmanager
    def _naming_it(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self.has_failed = True
            raise OutputFault(error.errno, error.strerror) from error
