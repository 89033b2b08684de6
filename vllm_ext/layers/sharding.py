"""Which part of a layer belongs to which rank of a tensor-parallel group: pure functions of sizes.

A part is a ``range`` of rows, columns or heads of the whole layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from vllm_ext.errors import CheckpointError, ConfigError

SETTING = "engine.tensor_parallel_size"


class Heads(NamedTuple):
    """Heads of attention on one rank; each of its KV heads serves as many of its query heads as the others."""

    query: range
    kv: range

    def columns(self, head_size: int) -> tuple[range, range]:
        """Rows of the projections' weights: of the query, and of key and value."""
        return _scaled(self.query, head_size), _scaled(self.kv, head_size)


def even_part(total: int, rank: int, num_ranks: int, what: str) -> range:
    """``rank``'s part, as long as the others'.

    Args:
        what: names ``total`` in the message.

    Raises:
        ConfigError: the ranks cannot have equal parts.
    """
    if total % num_ranks:
        raise ConfigError(f"{SETTING} is {num_ranks}, and {what} {total} cannot be split evenly over so many ranks")
    size = total // num_ranks
    return range(rank * size, (rank + 1) * size)


def padded_part(total: int, rank: int, num_ranks: int) -> tuple[range, int]:
    """``rank``'s part of a vocabulary, and the rows that each rank has room for, which is the same on all.

    The last ranks have fewer than they have room for where ``total`` is not divisible, or none at all.
    """
    room = -(-total // num_ranks)
    return range(min(rank * room, total), min((rank + 1) * room, total)), room


def heads_of(num_heads: int, num_kv_heads: int, rank: int, num_ranks: int) -> Heads:
    """Heads of ``rank``.

    Where there are at least as many KV heads as ranks, each rank has an equal number of them, with all their query
    heads. Else a KV head is on several ranks, which share its query heads, as evenly as their number allows; the query
    heads of the ranks follow one another. 6 heads on 2 KV heads are, on 4 ranks, 1, 2, 1 and 2 query heads with KV
    head 0, 0, 1 and 1.

    Raises:
        ConfigError: the heads cannot be shared so.
    """
    if (refusal := _refusal_of_heads(num_heads, num_kv_heads, num_ranks)) is not None:
        raise ConfigError(f"{SETTING} is {num_ranks}, and {refusal}")
    group = num_heads // num_kv_heads
    if num_ranks <= num_kv_heads:
        kv = even_part(num_kv_heads, rank, num_ranks, "a number of KV heads of")
        return Heads(_scaled(kv, group), kv)
    # The ranks of KV head k are those from k / num_kv_heads of all on, rounded up.
    head = rank * num_kv_heads // num_ranks
    first, end = (-(-each * num_ranks // num_kv_heads) for each in (head, head + 1))
    num_sharing, place = end - first, rank - first
    start, stop = (head * group + each * group // num_sharing for each in (place, place + 1))
    return Heads(range(start, stop), range(head, head + 1))


def check_tensor_parallel_size(
    model: str, num_ranks: int, num_heads: int, num_kv_heads: int, intermediate: int
) -> None:
    """ConfigError where a decoder of these sizes cannot be split over ``num_ranks``.

    Args:
        model: names it in the message.
    """
    refusal = _refusal(num_heads, num_kv_heads, intermediate, num_ranks)
    if refusal is None:
        return
    possible = [n for n in range(1, num_heads + 1) if _refusal(num_heads, num_kv_heads, intermediate, n) is None]
    raise ConfigError(
        f"{SETTING} is {num_ranks}, and {model} cannot be split over so many ranks: {refusal}. "
        f"Possible for this model: {', '.join(map(str, possible))}"
    )


def _refusal(num_heads: int, num_kv_heads: int, intermediate: int, num_ranks: int) -> str | None:
    if intermediate % num_ranks:
        return f"its intermediate_size {intermediate} cannot be split evenly"
    return _refusal_of_heads(num_heads, num_kv_heads, num_ranks)


def _refusal_of_heads(num_heads: int, num_kv_heads: int, num_ranks: int) -> str | None:
    if num_ranks > num_heads:
        return f"its {num_heads} query heads (num_attention_heads) are fewer"
    if num_ranks < num_kv_heads and num_kv_heads % num_ranks:
        # Blocks of the KV cache would have another size on each rank.
        return f"its {num_kv_heads} KV heads (num_key_value_heads) cannot be split evenly"
    return None


def take(loaded: torch.Tensor, dim: int, part: range, total: int) -> torch.Tensor:
    """A rank's ``part`` of a checkpoint's tensor, which has ``total`` along ``dim``: a view, nothing is read.

    Raises:
        CheckpointError: the tensor has another size there.
    """
    if len(part) == total:
        return loaded
    if loaded.dim() <= dim or loaded.shape[dim] != total:
        raise CheckpointError(
            f"its shape is {list(loaded.shape)}; the model has {total} in dimension {dim}, of which this rank takes "
            f"{len(part)}"
        )
    return loaded.narrow(dim, part.start, len(part))


def _scaled(part: range, factor: int) -> range:
    return range(part.start * factor, part.stop * factor)
