"""Names for what a full block of the KV cache holds.

What a block holds follows from its tokens and from all tokens before them, so a block's hash takes in the hash of the
block before it. It is SHA-256: two contents with one hash would give a request the keys and values of another one, and
prompts come from people who may want just that. It is the same in every process, unlike Python's own ``hash``.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256
from typing import TypeAlias

BlockHash: TypeAlias = bytes
"""32 bytes."""


def hash_block(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """The hash of a block with ``token_ids`` behind the block with the hash ``parent``; ``b""`` for the first one."""
    return sha256(parent + array("q", token_ids).tobytes()).digest()


def extend_hashes(block_hashes: list[BlockHash], token_ids: Sequence[int], block_size: int, num_blocks: int) -> None:
    """Make ``block_hashes``, those of the first blocks of ``token_ids``, those of its first ``num_blocks`` blocks."""
    parent = block_hashes[-1] if block_hashes else b""
    for start in range(len(block_hashes) * block_size, num_blocks * block_size, block_size):
        parent = hash_block(parent, token_ids[start : start + block_size])
        block_hashes.append(parent)
