"""The scheduler contract: which requests a step computes, and what its tokens mean for them.

In vLLM: ``vllm.v1.core.sched.interface``. A scheduler of one's own is named by ``engine.scheduler_cls``; the easiest
one is a subclass of :class:`vllm_ext.engine.scheduling.scheduler.Scheduler`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_ext.contracts.kv_cache import KVCacheConfig
    from vllm_ext.contracts.outputs import ModelRunnerOutput
    from vllm_ext.contracts.scheduler_output import SchedulerOutput
    from vllm_ext.contracts.stats import SchedulerStats
    from vllm_ext.contracts.vllm_config import VllmConfig
    from vllm_ext.engine.scheduling.request import EngineCoreOutput, Request, RequestStatus

CONSTRUCTOR_KEYWORDS = (
    "vllm_config",
    "kv_cache_config",
    "structured_output_manager",
    "include_finished_set",
    "log_stats",
    "block_size",
    "hash_block_size",
)


class SchedulerInterface(ABC):
    """What an engine core calls, always from one thread. vLLM: ``SchedulerInterface``.

    A step is :meth:`schedule`, the workers' computation, :meth:`update_from_output`; the other methods are called
    between two steps. A class does not have to derive from this one, but has to have its abstract methods.

    Args (all by keyword):
        vllm_config: of the engine, the platform's changes included; ``scheduler_config`` has the limits of a step.
        kv_cache_config: the number of blocks, and what each group of layers stores in them.
        structured_output_manager: ``None``: the engine has no structured output.
        include_finished_set: False: finished requests are told through their outputs.
        log_stats: whether :meth:`make_stats` will be asked; always True.
        block_size: tokens in a block.
        hash_block_size: tokens that are hashed together for prefix caching; the same here.
    """

    @abstractmethod
    def __init__(
        self,
        vllm_config: VllmConfig,
        kv_cache_config: KVCacheConfig,
        structured_output_manager: Any = None,
        include_finished_set: bool = False,
        log_stats: bool = False,
        block_size: int | None = None,
        hash_block_size: int | None = None,
    ) -> None: ...

    @abstractmethod
    def schedule(self) -> SchedulerOutput:
        """Choose the next step's tokens and give them cache slots. vLLM: ``schedule``.

        Returns: what every worker is told. It may have no tokens, only requests that ended.
        """

    @abstractmethod
    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> list[EngineCoreOutput]:
        """Add a step's tokens to their requests, and end those that are complete. vLLM: ``update_from_output``.

        Args:
            scheduler_output: what the last :meth:`schedule` returned.
            model_runner_output: what the workers made of it.

        Returns: what is new, one for each request that got tokens (vLLM: by client).

        Raises:
            EngineError: the workers' output does not fit the step.
        """

    @abstractmethod
    def add_request(self, request: Request) -> None:
        """Queue a request. vLLM: ``add_request``.

        Raises:
            InvalidRequest: it can never be served; nothing is changed. Whatever else is raised ends this request alone:
                :meth:`finish_requests` is called for it, and others go on.
        """

    @abstractmethod
    def finish_requests(self, request_ids: Iterable[str], finished_status: RequestStatus) -> None:
        """End requests from outside, be it an abort or a stop string; unknown ids are passed over. vLLM:
        ``finish_requests``.
        """

    @abstractmethod
    def abort_all(self) -> list[str]:
        """End every request after a step that was broken off at any point; an extension of vLLM's contract.

        Returns: the ids of those that were ended.
        """

    @abstractmethod
    def get_num_unfinished_requests(self) -> int:
        """How many requests wait or run. vLLM: ``get_num_unfinished_requests``."""

    def has_unfinished_requests(self) -> bool:
        """Whether requests wait or run. vLLM: ``has_unfinished_requests``."""
        return self.get_num_unfinished_requests() > 0

    @abstractmethod
    def has_finished_requests(self) -> bool:
        """Whether requests ended that the workers have not been told of. vLLM: ``has_finished_requests``."""

    def has_requests(self) -> bool:
        """Whether a step has something to do. vLLM: ``has_requests``."""
        return self.has_unfinished_requests() or self.has_finished_requests()

    @abstractmethod
    def reset_prefix_cache(self, *, reset_running_requests: bool = False) -> bool:
        """Forget what the KV cache holds for prompts to come. vLLM: ``reset_prefix_cache``.

        Args:
            reset_running_requests: preempt what runs, so that its blocks are free.

        Returns: False, and nothing is changed, while requests use blocks.
        """

    @abstractmethod
    def make_stats(self) -> SchedulerStats:
        """Load, preemptions and use of the KV cache now. vLLM: ``make_stats``."""

    def check_integrity(self) -> None:  # noqa: B027 - not every scheduler keeps books
        """EngineError where the scheduler's own books do not agree; an extension of vLLM's contract, for tests."""

    def shutdown(self) -> None:  # noqa: B027 - most hold nothing
        """Release what the scheduler holds; may be called twice. vLLM: ``shutdown``."""


CALLED_METHODS = tuple(
    name for name, value in vars(SchedulerInterface).items() if callable(value) and not name.startswith("_")
)
"""What the engine core calls of every scheduler."""


def missing_methods(scheduler_cls: type) -> list[str]:
    """Which of :data:`CALLED_METHODS` the class lacks, or leaves abstract."""
    found = {name: getattr(scheduler_cls, name, None) for name in CALLED_METHODS}
    return [name for name, method in found.items() if method is None or getattr(method, "__isabstractmethod__", False)]
