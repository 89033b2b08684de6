"""The stat logger contract (vLLM's ``vllm.v1.metrics.loggers``): who is told what each step did.

All methods of a logger are called in one thread, which is the logger's own: it may wait, and what it raises harms
nobody. One that is behind by many records loses the next ones; one that keeps failing is dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from vllm_ext.contracts.stats import IterationStats, SchedulerStats
    from vllm_ext.contracts.vllm_config import VllmConfig

CONSTRUCTOR_ARGUMENTS = ("vllm_config", "engine_index")
RECORD_KEYWORDS = ("scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx")


class StatLoggerBase(ABC):
    """Base of stat loggers; the entry point in ``vllm.stat_logger_plugins`` is a subclass. vLLM: ``StatLoggerBase``.

    It is built once the engine is ready, in the thread that starts the engine. Options of a plugin are in
    ``vllm_config.additional_config[NAME]``.

    Args:
        vllm_config: the engine's configuration; not to be changed.
        engine_index: which engine's numbers it is given, from 0.
    """

    @abstractmethod
    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None: ...

    @abstractmethod
    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take the numbers of one step, which are only read.

        Args:
            scheduler_stats: how things stand; ``None`` where requests ended outside of a step.
            iteration_stats: what the step brought; ``None`` where nothing came.
            mm_cache_stats: ``None``: the engine has no multi-modal cache.
            engine_idx: number of the engine, from 0.
        """

    @abstractmethod
    def log_engine_initialized(self) -> None:
        """Called once, before everything else, when the engine is ready."""

    def log(self) -> None:  # noqa: B027 - optional
        """Write out what was recorded since the last call: every ``engine.log_stats_interval_s`` seconds, and at the
        end. The default does nothing.
        """

    def record_sleep_state(self, is_awake: int, level: int) -> None:  # noqa: B027 - optional
        """Take a change of the sleep state, given by position. The default ignores it.

        Args:
            is_awake: the number 1 where the engine went to sleep, 0 where it is awake again: what vLLM gives, whatever
                the name says.
            level: the number of vLLM's sleep level, 0, 1 or 2.
        """


class AggregateStatLoggerBase(StatLoggerBase):
    """Base of loggers of which one is built for all engines of a front end, and not one for each. vLLM:
    ``AggregateStatLoggerBase``.

    Args:
        vllm_config: the engines' configuration; not to be changed.
        engine_indexes: numbers of all engines, here ``[0]``; which one a record is of is its ``engine_idx``.
    """

    @abstractmethod
    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None: ...

    def record_admission_rejection(self, reason: str) -> None:
        """Take that a request was turned away because there are too many, and why. The default ignores it."""


StatLoggerFactory: TypeAlias = Callable[..., StatLoggerBase]
"""A class of loggers, or what makes one when it is called with ``(vllm_config, engine_index)``; a class of aggregate
loggers is called with ``(vllm_config, engine_indexes)``."""
