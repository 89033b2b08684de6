"""Handlers of the log that stay calm where nothing can be written, as on a disk that is full."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


class QuietStreamHandler(logging.StreamHandler[TextIO]):
    """Standard error: where it cannot be written to, there is no place left to say so."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing for a stream that fails; for the rest, as a record that cannot be formatted, logging's traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class LogFile(logging.FileHandler):
    """The file of ``--log-file``: its first failure is kept for whoever opened it, and no line has a traceback for it.

    Args:
        path: appended to; made where it is not there.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.fault: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        """Keep what the file's system says; the rest is logging's own business."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.fault = self.fault or error
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the file, which writes what could not be written before."""
        try:
            super().close()
        except OSError as error:
            self.fault = self.fault or error
