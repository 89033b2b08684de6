"""The blocks of the KV cache, and which of them are free."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_ext.errors import EngineError


class KVCacheBlock:
    """One block; ``ref_cnt`` is the number of requests that use it."""

    __slots__ = ("block_id", "ref_cnt")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_cnt = 0

    def __repr__(self) -> str:
        return f"<KVCacheBlock {self.block_id} used {self.ref_cnt} times>"


class BlockPool:
    """All blocks of the KV cache.

    The block that was freed last is handed out first: its memory is in the processor's cache, or at least backed by
    pages, while a block that was never used may be neither.
    """

    def __init__(self, num_blocks: int) -> None:
        self.blocks = [KVCacheBlock(block_id) for block_id in range(num_blocks)]
        self._free = self.blocks[::-1]

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def allocate(self, num_blocks: int) -> list[KVCacheBlock]:
        """Take ``num_blocks`` free blocks; asking for more than :attr:`num_free_blocks` is a mistake of the caller.

        Raises:
            EngineError: there are not that many.
        """
        if num_blocks > len(self._free):
            raise EngineError(f"{num_blocks} KV cache blocks were asked for and {len(self._free)} are free")
        taken = [self._free.pop() for _ in range(num_blocks)]
        for block in taken:
            block.ref_cnt += 1
        return taken

    def free(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Give up one use of each of ``blocks``; those without a user left become free, in this order."""
        for block in blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                self._free.append(block)

    def check_integrity(self) -> None:
        """Check that free blocks and blocks in use are all blocks, and that no free block has a user.

        Raises:
            EngineError: the accounting is broken; the text has the counts.
        """
        free = {block.block_id for block in self._free}
        in_use = {block.block_id for block in self.blocks if block.ref_cnt > 0}
        negative = [block for block in self.blocks if block.ref_cnt < 0]
        if len(free) != len(self._free) or free & in_use or negative or len(free) + len(in_use) != self.num_blocks:
            raise EngineError(
                f"KV cache accounting is broken: {len(self._free)} entries of {len(free)} free blocks, {len(in_use)} "
                f"blocks in use, {self.num_blocks} in all; free and in use: {sorted(free & in_use)}; "
                f"released too often: {negative}"
            )
