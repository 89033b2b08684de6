"""Sizes of KV cache blocks that several attention backends can share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

_MAX_DOUBLINGS = 8
"""How far the default goes in search of a block size: with 16 tokens, up to 2048."""


def find_block_size(backends: Collection[Any], default: int) -> int | None:
    """A size that all ``backends`` support, in tokens: the first of ``default``, doubling, or else the smallest one
    from there on that is a multiple of what each of them declares; ``None`` where there is none.
    """
    doubled = [default << doublings for doublings in range(_MAX_DOUBLINGS)]
    common = {math.lcm(*bases) for bases in itertools.product(*map(_bases, backends))}
    multiples = sorted(-(-default // base) * base for base in common)
    sizes = (size for size in (*doubled, *multiples) if all(backend.supports_block_size(size) for backend in backends))
    return next(sizes, None)


def describe_block_sizes(backend: Any) -> str:
    """The sizes that ``backend`` declares, for people."""
    return " or ".join(f"a multiple of {base}" for base in _bases(backend)) or "nothing that it declares"


def _bases(backend: Any) -> list[int]:
    """Numbers of which its blocks hold multiples."""
    declared: Sequence[Any] = getattr(backend, "get_supported_kernel_block_sizes", tuple)()
    return [getattr(size, "base", size) for size in declared]
