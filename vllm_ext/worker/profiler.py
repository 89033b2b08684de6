"""Traces of what a worker does, by torch's profiler."""

from __future__ import annotations

import time
from pathlib import Path

from torch.profiler import profile

from vllm_ext.errors import ConfigError, EngineError


class TorchProfiler:
    """Records all that torch can see, from :meth:`start` to :meth:`stop`, which are called in one thread.

    Args:
        directory: where traces are written; made where it is missing. ``None`` allows no profiling.
        rank: of the worker, for the names of its files.
    """

    def __init__(self, directory: str | None, rank: int) -> None:
        self._directory = directory
        self._rank = rank
        self._running: profile | None = None
        self._path = Path()

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._running is not None

    def start(self, prefix: str | None = None) -> None:
        """Begin to record; the name of the file will begin with ``prefix``.

        Raises:
            ConfigError: there is no folder for the trace.
            EngineError: it has begun already, or ``prefix`` is no part of a file's name.
        """
        if self._directory is None:
            raise ConfigError("profiler.torch_profiler_dir is not set; set it to a folder for the traces")
        if self.is_running:
            raise EngineError("a profile is being recorded already; stop_profile() ends it")
        if prefix is not None and (not isinstance(prefix, str) or Path(prefix).name != prefix or prefix == ".."):
            raise EngineError(
                f"profile_prefix is {prefix!r}; it takes the beginning of a file's name, without a folder"
            )
        directory = Path(self._directory).expanduser()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"profiler.torch_profiler_dir {str(directory)!r} cannot be made: {error}") from error
        words = [*([prefix] if prefix else []), f"rank{self._rank}", str(time.time_ns())]
        self._path = directory / f"{'_'.join(words)}.pt.trace.json"
        self._running = profile()
        self._running.start()

    def stop(self) -> Path:
        """Write what was recorded, as a Chrome trace; returns the file.

        Raises:
            EngineError: nothing was begun, or there is no trace, which torch says on standard error alone.
        """
        if self._running is None:
            raise EngineError("no profile is being recorded; start_profile() begins one")
        recorded, self._running = self._running, None
        recorded.stop()
        recorded.export_chrome_trace(str(self._path))
        if not self._path.is_file():
            raise EngineError(
                f"torch could not write the trace {str(self._path)!r}; the folder profiler.torch_profiler_dir has to "
                "be there, to be writable, and to have room"
            )
        return self._path
