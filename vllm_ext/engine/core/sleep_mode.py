"""Sleep mode of an engine core: steps stop, and the workers give memory back until they are woken up."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vllm_ext.contracts.executor import Executor
from vllm_ext.contracts.vllm_config import ModelConfig
from vllm_ext.errors import ConfigError, EngineError, InvalidRequest, did_you_mean

logger = logging.getLogger(__name__)

WEIGHTS, KV_CACHE, SCHEDULING = "weights", "kv_cache", "scheduling"
"""What can be woken up by itself: memory of two kinds, and the steps, which go on once no memory sleeps."""
MEMORY = (WEIGHTS, KV_CACHE)
TAGS = (*MEMORY, SCHEDULING)


def check_sleep_mode(level: int, model_config: ModelConfig) -> None:
    """ConfigError where an engine cannot sleep so deeply."""
    if level and not model_config.enable_sleep_mode:
        raise ConfigError(
            f"sleep() of level {level} gives memory back, and engine.enable_sleep_mode is false; set it to true "
            "when the engine is started, or use level 0, which stops the steps alone"
        )


class SleepMode:
    """What of an engine sleeps; that it may, is for :func:`check_sleep_mode`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._asleep: set[str] = set()

    @property
    def is_asleep(self) -> bool:
        """Whether no steps are made."""
        return bool(self._asleep)

    @property
    def has_given_memory(self) -> bool:
        """Whether memory is missing for steps."""
        return not self._asleep.isdisjoint(MEMORY)

    def enter(self, level: int) -> None:
        """Stop the steps; above level 0, let the workers give memory back, too. Nothing is in flight then that has a
        place in the KV cache.
        """
        self._asleep.add(SCHEDULING)
        if not level:
            return
        # Also where a worker fails at it: who knows what it has given.
        self._asleep.update(MEMORY)
        self._executor.sleep(level)

    def leave(self, tags: Iterable[str] | None = None) -> None:
        """Wake up what ``tags`` name, or everything.

        Raises:
            InvalidRequest: nothing has such a name. EngineError: the KV cache is to come before the weights.
        """
        wanted = set(TAGS if tags is None else tags)
        if unknown := sorted(wanted.difference(TAGS)):
            tag = unknown[0]
            raise InvalidRequest(f"tags has {tag!r}{did_you_mean(tag, TAGS)}; it takes {', '.join(TAGS)}")
        if wanted.isdisjoint(self._asleep):
            logger.warning("nothing of what is to be woken up sleeps: %s", ", ".join(sorted(wanted)))
            return
        memory = [tag for tag in MEMORY if tag in wanted & self._asleep]
        if memory == [KV_CACHE] and WEIGHTS in self._asleep:
            raise EngineError("the weights sleep; they are woken up before the KV cache, or together with it")
        if memory:
            self._executor.wake_up(memory)
        self._asleep.difference_update(memory)
        if not self.has_given_memory:
            # As in vLLM, steps go on by themselves once they can, but where they alone were stopped.
            self._asleep.discard(SCHEDULING)
