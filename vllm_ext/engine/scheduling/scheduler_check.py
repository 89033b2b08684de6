"""A check that a scheduler's own books agree: for tests, and for whoever suspects them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vllm_ext.engine.scheduling.kv_cache_manager import KVCacheManager
from vllm_ext.engine.scheduling.request import Request, RequestStatus
from vllm_ext.errors import EngineError


def check_scheduler(
    requests: dict[str, Request], waiting: Sequence[Request], running: Sequence[Request], manager: KVCacheManager
) -> None:
    """Check blocks, lists and statuses against each other.

    Raises:
        EngineError: something is broken; the text says what.
    """
    manager.check_integrity()
    pool = manager.block_pool
    if not requests and pool.num_free_blocks != pool.num_blocks:
        raise EngineError(
            f"no request is in flight, yet only {pool.num_free_blocks} of {pool.num_blocks} cache blocks are free"
        )
    listed = [*running, *waiting]
    if len(listed) != len(requests) or {id(r) for r in listed} != {id(r) for r in requests.values()}:
        raise EngineError(f"requests in flight and requests in the lists differ: {list(requests.values())}; {listed}")
    for place in (running, waiting):
        if any(first.queue_key >= second.queue_key for first, second in pairwise(place)):
            raise EngineError(f"requests are out of their order: {place}")
    wrong = [request for request in running if not _runs(request, manager)]
    wrong += [request for request in waiting if not _waits(request, manager.num_blocks_of(request))]
    if wrong:
        raise EngineError(f"status, tokens and cache blocks of requests do not fit each other: {wrong}")


def _runs(request: Request, manager: KVCacheManager) -> bool:
    num_given_back = manager.num_given_back_by(request)
    num_slots = (num_given_back + manager.num_blocks_of(request)) * manager.block_size
    return (
        request.status is RequestStatus.RUNNING
        and num_slots == request.num_slots >= request.num_computed_tokens > 0
        and num_given_back <= manager.num_unseen_blocks(request.num_computed_tokens)
        and request.num_computed_tokens < request.num_tokens
    )


def _waits(request: Request, num_blocks: int) -> bool:
    return (
        request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        and num_blocks == request.num_slots == request.num_computed_tokens == 0
    )
