"""``jsonl``: every record as a line of JSON in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TextIO

import msgspec

from vllm_ext.contracts.stat_logger import StatLoggerBase
from vllm_ext.contracts.stats import IterationStats, SchedulerStats
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import ConfigError, Unavailable

NAME = "jsonl"
_KEY = f"options.{NAME}.path"


class JsonlStatLogger(StatLoggerBase):
    """Appends to the file that ``options: {jsonl: {path: FILE}}`` names; it is made where it is not there.

    A line is an object with ``engine``, ``scheduler`` and ``iteration``; the latter two have the names of
    :class:`SchedulerStats` and :class:`IterationStats`, or are null. Lines are written out at each ``log()``.

    Raises:
        Unavailable: the options name no file.
        ConfigError: they name something else than a file that can be written.
    """

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        path = vllm_config.additional_config.get(NAME, {}).get("path")
        if path is None:
            raise Unavailable(f"{_KEY} names no file; set it to the one that lines are to be appended to")
        if not isinstance(path, str) or not path:
            raise ConfigError(f"{_KEY} is {path!r}; it takes the path of a file")
        try:
            # It stays open as long as the logger is there.
            self._file: TextIO = open(Path(path).expanduser(), "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{_KEY} is {path!r}, which cannot be written: {os.strerror(error.errno or 0)}") from None
        self._encode = msgspec.json.Encoder().encode

    def log_engine_initialized(self) -> None:
        """Nothing: the lines are records."""

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add a line."""
        line = {"engine": engine_idx, "scheduler": scheduler_stats, "iteration": iteration_stats}
        self._file.write(self._encode(line).decode() + "\n")

    def log(self) -> None:
        """Write out what is buffered."""
        self._file.flush()

    def __del__(self) -> None:
        # Nobody tells a stat logger that its engine ends.
        if (file := self.__dict__.get("_file")) is not None:
            file.close()
