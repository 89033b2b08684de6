"""The stat logger contract (vLLM's ``vllm.v1.metrics.loggers``): who is told what each step did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import VllmConfig


class StatLoggerBase(ABC):
    """Base of stat loggers; the entry point in ``vllm.stat_logger_plugins`` is a subclass. vLLM: ``StatLoggerBase``.

    Args:
        vllm_config: the engine's configuration; not to be changed.
        engine_index: which engine's numbers it is given, from 0.
    """

    @abstractmethod
    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None: ...

    @abstractmethod
    def record(
        self, scheduler_stats: Any | None, iteration_stats: Any | None, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Take the numbers of one step, of the engine with the number ``engine_idx``; either part may be ``None``."""

    @abstractmethod
    def log_engine_initialized(self) -> None:
        """Called once, when the engine is ready."""

    def log(self) -> None:  # noqa: B027 - optional
        """Write out what was recorded since the last call; the default does nothing."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:  # noqa: B027 - optional
        """Take a change of the sleep state: ``is_awake`` is the number 1 or 0, ``level`` the number of vLLM's
        sleep level, 1 or 2. The default ignores it.
        """
