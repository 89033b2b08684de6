"""Sleep mode of ``LLM`` and ``AsyncLLM``: the engine gives its memory back, and takes it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_ext.engine.arguments import check_sleep, check_tags
from vllm_ext.engine.core.messages import AbortRequests
from vllm_ext.engine.core.sleep_mode import check_sleep_mode
from vllm_ext.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import VllmConfig
    from vllm_ext.engine.async_requests import AsyncRequests
    from vllm_ext.engine.calls import Calls
    from vllm_ext.engine.core.async_client import AsyncCoreClient
    from vllm_ext.engine.llm_engine import LLMEngine
    from vllm_ext.engine.metrics.manager import StatLoggerManager


class SleepCalls:
    """The calls of ``LLM``."""

    llm_engine: LLMEngine
    _calls: Calls

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Stop, and give memory back until :meth:`wake_up`. What other threads have in flight ends, with the
        ``finish_reason`` ``abort``; until the engine is awake, requests are EngineErrors.

        Args:
            level: the number 0, 1 or 2. 0 gives nothing; 1 gives the memory of the KV cache, and moves the weights out
                of a device's own; 2 gives that of the weights, too. Above 0 the engine has to be started with
                ``enable_sleep_mode=True``.
            mode: nothing but ``abort``.

        Raises:
            InvalidRequest: an argument is of a wrong kind.
            ConfigError: sleep mode is not enabled.
            EngineError: a worker failed; :meth:`wake_up` may be tried.
        """
        with self._calls.turn:
            self.llm_engine.sleep(level, mode)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Take memory again, and go on. After level 2 the weights are loaded as at the start, so that what was changed
        in them is gone (in vLLM they are undefined until somebody loads them).

        Args:
            tags: some of ``weights``, ``kv_cache`` and, after level 0, ``scheduling``; all that sleeps if omitted. The
                weights come before the KV cache, or together with it.

        Returns: whether nothing sleeps any more.

        Raises:
            InvalidRequest: nothing has such a name.
            EngineError: a worker failed, as when there is no memory; the engine sleeps on.
        """
        with self._calls.turn:
            return self.llm_engine.wake_up(tags)

    def is_sleeping(self) -> bool:
        """Whether the engine sleeps. An extension of vLLM's contract, where only the engine knows."""
        return self.llm_engine.is_sleeping()


class AsyncSleepCalls:
    """The calls of ``AsyncLLM``."""

    _core: AsyncCoreClient
    _requests: AsyncRequests
    _stats: StatLoggerManager
    vllm_config: VllmConfig

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Stop after the step that is running, and give memory back until :meth:`wake_up`. Requests that come meanwhile
        wait for that.

        Args:
            level: a number, as for :meth:`LLM.sleep`.
            mode: what becomes of the requests in flight: ``abort`` ends them, ``keep`` lets them wait, and above level
                0 they are computed again. To wait for them, as vLLM offers, await them before.

        Raises:
            InvalidRequest: an argument is of a wrong kind.
            EngineError: sleep mode is not enabled, or a worker failed; in the latter case :meth:`wake_up` may be tried.
        """
        level = check_sleep(level, mode, ("abort", "keep"))
        try:
            # Before anything is ended for a call that the core would refuse.
            check_sleep_mode(level, self.vllm_config.model_config)
        except ConfigError as error:
            raise EngineError(str(error)) from error
        if mode == "abort" and (core_ids := self._requests.abort(self._requests.request_ids())):
            self._core.send(AbortRequests(core_ids))
        if await self._core.call("sleep", level=level):
            self._stats.record_sleep_state(is_asleep=True, level=level)

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        """Take memory again, and go on; see :meth:`LLM.wake_up`. All errors of the engine are EngineErrors."""
        check_tags(tags)
        is_awake = bool(await self._core.call("wake_up", tags=tags))
        if is_awake:
            self._stats.record_sleep_state(is_asleep=False)
        return is_awake

    async def is_sleeping(self) -> bool:
        """Whether the engine sleeps."""
        return bool(await self._core.call("is_sleeping"))
