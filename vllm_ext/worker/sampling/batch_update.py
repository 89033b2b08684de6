"""How one step's rows differ from the last one's, in the words of the logits processor contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm_ext.contracts.logits_processor import BatchUpdate, MoveDirectionality, MovedRequest
from vllm_ext.contracts.sampling_params import SamplingParams

Arrival = tuple[SamplingParams, list[int], list[int]]
"""Parameters, prompt token ids, and the output token ids, a list that grows with the request."""


def make_batch_update(old: Sequence[int], new: Sequence[int], arrival: Callable[[int], Arrival]) -> BatchUpdate | None:
    """The update that leads from rows ``old`` to rows ``new``; ``None`` where they are the same.

    Args:
        old, new: which request has each row, as a number that no other request ever has.
        arrival: what a logits processor is told of a request that was not in ``old``.
    """
    if list(old) == list(new):
        return None
    staying, known = set(new), set(old)
    rows: list[int | None] = [request if request in staying else None for request in old]
    removed = [row for row, request in enumerate(rows) if request is None]
    rows += [None] * (len(new) - len(old))
    # Arrivals take the free rows from the first on; what is left free lies behind, or is filled by moves.
    free = (row for row, request in enumerate(rows) if request is None)
    added = []
    for request in new:
        if request not in known:
            row = next(free)
            rows[row] = request
            added.append((row, *arrival(request)))
    return BatchUpdate(len(new), removed, added, _moves(rows, new))


def _moves(rows: list[int | None], new: Sequence[int]) -> list[MovedRequest]:
    """Moves that put each request where ``new`` has it."""
    row_of = {request: row for row, request in enumerate(rows) if request is not None}
    moved: list[MovedRequest] = []
    for target, request in enumerate(new):
        source, other = row_of[request], rows[target]
        if source == target:
            continue
        rows[target], rows[source] = request, other
        row_of[request] = target
        if other is None:
            moved.append((source, target, MoveDirectionality.UNIDIRECTIONAL))
        else:
            row_of[other] = source
            moved.append((source, target, MoveDirectionality.SWAP))
    return moved
