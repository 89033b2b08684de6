"""Lists of requests in the order in which they are served: by ``queue_key``, the smallest first.

Whoever was preempted has the key it had, and so the place that it had before.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from vllm_ext.engine.scheduling.request import Request


def _key(request: Request) -> tuple[int, int]:
    return request.queue_key


def insert_in_order(requests: list[Request], request: Request) -> None:
    """Put ``request`` at its place among ``requests``."""
    insort(requests, request, key=_key)


def remove_in_order(requests: list[Request], request: Request) -> None:
    """Take ``request`` out of ``requests``, whose keys are all different."""
    del requests[bisect_left(requests, request.queue_key, key=_key)]
