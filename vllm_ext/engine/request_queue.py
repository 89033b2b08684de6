"""The requests that wait to be computed, in the order in which they will be."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from vllm_ext.engine.request import Request


def _key(request: Request) -> tuple[int, int]:
    return request.queue_key


def insert_in_order(requests: list[Request], request: Request) -> None:
    """Put ``request`` at its place among ``requests``, which are in the order of their ``queue_key``."""
    insort(requests, request, key=_key)


def remove_in_order(requests: list[Request], request: Request) -> None:
    """Take ``request`` out of ``requests``, which are in the order of their ``queue_key``, all different."""
    del requests[bisect_left(requests, request.queue_key, key=_key)]


class RequestQueue:
    """Waiting requests by their ``queue_key``; whoever was preempted is at the place it had before."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        insert_in_order(self._requests, request)

    def peek(self) -> Request:
        """The next request, which stays in the queue; IndexError where it is empty."""
        return self._requests[0]

    def pop(self) -> Request:
        """Take the next request; IndexError where the queue is empty."""
        return self._requests.pop(0)

    def remove(self, request: Request) -> None:
        """Take ``request``, which is in the queue, out of it."""
        remove_in_order(self._requests, request)

    def clear(self) -> None:
        self._requests.clear()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)
