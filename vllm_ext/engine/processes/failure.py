"""What went wrong in one process, told in another: the same error, with the traceback that only the first has."""

from __future__ import annotations

import os
import traceback

import msgspec

from vllm_ext import errors
from vllm_ext.errors import PluginError, VllmExtError, WorkerError, innermost_cause, message_of, plugin_traceback


class Failure(msgspec.Struct, frozen=True):
    """An exception, as plain data."""

    process: str
    """The name of the process, such as ``worker 1``."""
    pid: int
    where: str
    """What it was doing: ``in load_model()``."""
    cause: str
    """The innermost exception in one line."""
    traceback: str
    """The whole of it."""
    plugin_traceback: str
    """As :func:`vllm_ext.errors.plugin_traceback` gives it; of what is no error of vllm_ext, the whole."""
    error_cls: str | None = None
    """Of an error of vllm_ext its class; its text is meant for the user as it stands."""
    message: str = ""
    plugin: str | None = None
    rank: int | None = None

    @classmethod
    def of(
        cls, error: BaseException, process: str, where: str, rank: int | None = None, whose_code: str = ""
    ) -> Failure:
        """What ``error`` was, for the process that waits for an answer of this one.

        Args:
            whose_code: added to the cause: in which plugin's code it was.
        """
        is_ours = isinstance(error, VllmExtError)
        text = _printable("".join(traceback.format_exception(error)))
        return cls(
            process,
            os.getpid(),
            where,
            f"{innermost_cause(error)}{whose_code}",
            text,
            _printable(plugin_traceback(error)) if is_ours else text,
            _class_in_errors(error) if is_ours else None,
            message_of(error) if is_ours else "",
            getattr(error, "plugin", None),
            rank if rank is not None else getattr(error, "rank", None),
        )

    def as_error(self) -> VllmExtError:
        """The error to raise here. One of vllm_ext keeps its class; whatever else it was is a WorkerError."""
        error = self._ours() or WorkerError(
            f"{self.process} (PID {self.pid}) failed {self.where}: {self.cause}",
            rank=self.rank,
        )
        error.remote_traceback = self.plugin_traceback or None
        error.add_note(f"In {self.process} (PID {self.pid}):\n{self.traceback}")
        return error

    def _ours(self) -> VllmExtError | None:
        error_cls = getattr(errors, self.error_cls or "", None)
        if not (isinstance(error_cls, type) and issubclass(error_cls, VllmExtError)):
            return None
        message = self.message
        if not message.startswith(self.process):
            message = f"{self.process} (PID {self.pid}): {message}"
        if issubclass(error_cls, WorkerError):
            return error_cls(message, rank=self.rank)
        return error_cls(message, plugin=self.plugin) if issubclass(error_cls, PluginError) else error_cls(message)


def _class_in_errors(error: BaseException) -> str:
    """The nearest class that every process knows: its own, or that one's base."""
    return next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
