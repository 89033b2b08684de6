"""The requests in flight: where each of them stands, which blocks it owns, and the order among them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any

from vllm_ext.contracts.kv_cache import KVCacheConfig
from vllm_ext.contracts.stats import SchedulerStats
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.engine.scheduling.kv_cache_config import request_capacity
from vllm_ext.engine.scheduling.kv_cache_manager import KVCacheManager
from vllm_ext.engine.scheduling.request import Request, RequestStatus
from vllm_ext.engine.scheduling.request_limits import RequestLimits
from vllm_ext.engine.scheduling.request_order import insert_in_order, remove_in_order
from vllm_ext.engine.scheduling.sampled_tokens import SampledTokens
from vllm_ext.engine.scheduling.scheduler_check import check_scheduler
from vllm_ext.errors import InvalidRequest


class RequestsInFlight:
    """Everything about requests that may happen between two steps. A request is in one of two lists, each in the order
    of ``queue_key``: it waits and owns no block, or it runs and owns the blocks of its computed tokens, where every
    layer has a sliding window those that a token to come sees.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        kv_cache_config: KVCacheConfig,
        structured_output_manager: Any = None,
        include_finished_set: bool = False,
        log_stats: bool = False,
        block_size: int | None = None,
        hash_block_size: int | None = None,
    ) -> None:
        self.max_num_seqs = vllm_config.scheduler_config.max_num_seqs
        self.max_num_batched_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.policy = vllm_config.scheduler_config.policy
        cache_config = vllm_config.cache_config
        is_pooling = vllm_config.model_config.runner_type == "pooling"
        # An encoder has no KV cache: a prompt is computed in one step, and nothing of it is left.
        self.needs_whole_prompts = is_pooling and not kv_cache_config.kv_cache_groups
        self.kv_cache_manager = KVCacheManager(
            kv_cache_config,
            block_size or cache_config.block_size,
            enable_caching=cache_config.enable_prefix_caching and not self.needs_whole_prompts,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )
        capacity = request_capacity(kv_cache_config, self.kv_cache_manager.block_size)
        self.limits = RequestLimits(vllm_config.model_config.max_model_len, capacity, is_pooling=is_pooling)
        self._max_total_tokens = self.limits.max_total_tokens
        self._sampled = SampledTokens(vllm_config)
        self.requests: dict[str, Request] = {}
        """Every request that is not finished, by its id."""
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        """Like those that wait, in the order of their ``queue_key``."""
        # Requests that the workers can forget; they stay here until a step that says so is complete.
        self._finished_req_ids: set[str] = set()
        self._preempted_req_ids: set[str] = set()
        """Of which no step has told the workers yet."""
        self._left_out: list[Request] = []
        """Running requests that had no part in the last step."""
        self._arrivals = count()
        self.num_preemptions = 0
        """Preemptions since the engine started."""

    def add_request(self, request: Request) -> None:
        """Put ``request`` at its place in the queue.

        Raises:
            InvalidRequest: it can never be served, its id is in use, or it has a priority that the policy does not
                know; nothing is changed.
        """
        if request.request_id in self.requests:
            raise InvalidRequest(f"a request with the id {request.request_id!r} is in flight; ids have to be unique")
        if request.priority and self.policy != "priority":
            raise InvalidRequest(
                f"priority is {request.priority}, and engine.scheduling_policy is {self.policy!r}, which knows none; "
                "set engine.scheduling_policy to 'priority', or leave priority at 0"
            )
        self.limits.check_prompt(request.num_prompt_tokens)
        request.queue_key = (request.priority, next(self._arrivals))
        self.requests[request.request_id] = request
        insert_in_order(self.waiting, request)

    def finish_requests(self, request_ids: Iterable[str], finished_status: RequestStatus) -> None:
        """End requests from outside (an abort, a stop string); ids that are not in flight are passed over."""
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is None:
                continue
            remove_in_order(self.running if request.status is RequestStatus.RUNNING else self.waiting, request)
            # One that was preempted is known to the workers.
            if request.status is not RequestStatus.WAITING:
                self._finished_req_ids.add(request_id)
            request.status = finished_status
            self._release(request)

    def abort_all(self) -> list[str]:
        """End every request after a step that did not complete; all blocks are free again, and hold nothing.

        Returns: the ids of the requests that were ended.
        """
        ended = list(self.requests)
        # All of them, since one that changes its place just now is in no list; workers pass over unknown ids.
        self._finished_req_ids.update(self.requests)
        for request in self.requests.values():
            request.status = RequestStatus.FINISHED_ABORTED
        self.requests.clear()
        self.waiting.clear()
        self.running.clear()
        self._preempted_req_ids.clear()
        self._left_out.clear()
        # A step may be broken off at any point, also while blocks change hands.
        self.kv_cache_manager.reset()
        return ended

    def reset_prefix_cache(self, *, reset_running_requests: bool = False) -> bool:
        """Forget what the cache holds for prompts to come, between two steps.

        Args:
            reset_running_requests: preempt all running requests first; they are computed again.

        Returns: False, and nothing is changed, while requests use blocks.
        """
        while reset_running_requests and self.running:
            self._preempt(self.running.pop())
        return self.kv_cache_manager.reset_prefix_cache()

    def get_num_unfinished_requests(self) -> int:
        return len(self.requests)

    def has_finished_requests(self) -> bool:
        return bool(self._finished_req_ids)

    def has_requests(self) -> bool:
        """Whether a step has something to do: tokens to compute, or ended requests to tell the worker about."""
        return bool(self.requests or self._finished_req_ids)

    def make_stats(self) -> SchedulerStats:
        """How things stand between two steps."""
        return SchedulerStats(
            num_running_reqs=len(self.running),
            num_waiting_reqs=len(self.waiting),
            num_preemptions=self.num_preemptions,
            kv_cache_usage=self.kv_cache_manager.usage,
            prefix_cache_queries=self.kv_cache_manager.prefix_cache_stats.queries,
            prefix_cache_hits=self.kv_cache_manager.prefix_cache_stats.hits,
            prefix_cache_requests=self.kv_cache_manager.prefix_cache_stats.requests,
        )

    def check_integrity(self) -> None:
        """Check the KV cache accounting, and that lists, statuses and blocks of the requests agree, between two steps.

        Raises:
            EngineError: the accounting is broken.
        """
        check_scheduler(self.requests, self.waiting, self.running, self.kv_cache_manager)

    def _preempt(self, request: Request) -> None:
        """Take a request's blocks. What they hold may still be there when it comes back; the rest is computed again."""
        self.kv_cache_manager.free(request)
        self._preempted_req_ids.add(request.request_id)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        self.num_preemptions += 1
        insert_in_order(self.waiting, request)

    def _release(self, request: Request) -> None:
        self.kv_cache_manager.free(request)
        del self.requests[request.request_id]
