"""The blocks of the KV cache: which of them are free, and which hold content that can be used again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from vllm_ext.engine.scheduling.block_hash import BlockHash
from vllm_ext.errors import EngineError


class KVCacheBlock:
    """One block; ``ref_cnt`` is the number of requests that use it, ``block_hash`` names what it holds."""

    __slots__ = ("block_hash", "block_id", "ref_cnt")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_cnt = 0
        self.block_hash: BlockHash | None = None
        """Set while the block can be found by its content; ``None`` for a block that is not full, or not the one that
        is found for what it holds."""

    def __repr__(self) -> str:
        return f"<KVCacheBlock {self.block_id} used {self.ref_cnt} times>"


class BlockPool:
    """All blocks of the KV cache.

    A free block holds either nothing that could be used again, or content that a prefix may be found to have. Those
    without content are handed out first, and of them the one that was freed last: its memory is in the processor's
    cache, or at least backed by pages, while a block that was never used may be neither. Only where none is left is
    content given up: that of the block whose last user left the longest ago. So without prefix caching, and for the
    unfilled last blocks of requests with it, the block freed last comes first, and nothing that can be found again is
    lost as long as there is another place.
    """

    def __init__(self, num_blocks: int) -> None:
        self.blocks = [KVCacheBlock(block_id) for block_id in range(num_blocks)]
        self._empty = self.blocks[::-1]
        """Free blocks without content; the last one is the next."""
        self._evictable: OrderedDict[int, KVCacheBlock] = OrderedDict()
        """Free blocks with content, by their numbers, the least recently used one first."""
        self._block_of: dict[BlockHash, KVCacheBlock] = {}
        self.null_block = KVCacheBlock(0)
        """Stands for a block that nobody reads, and has the number of one. It is none of :attr:`blocks`, nobody counts
        as its user, and it is never free."""

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def num_free_blocks(self) -> int:
        """Blocks without a user, whatever they hold."""
        return len(self._empty) + len(self._evictable)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be found by what they hold, in use or not."""
        return len(self._block_of)

    def allocate(self, num_blocks: int) -> list[KVCacheBlock]:
        """Take ``num_blocks`` free blocks, without content; asking for more than are free is a mistake of the caller.

        Raises:
            EngineError: there are not that many.
        """
        if num_blocks > self.num_free_blocks:
            raise EngineError(f"{num_blocks} KV cache blocks were asked for and {self.num_free_blocks} are free")
        return [self._take() for _ in range(num_blocks)]

    def free(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Give up one use of each of ``blocks``. Those without a user left become free; of those with content the
        first ones here will be given up first.
        """
        for block in blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                if block.block_hash is None:
                    self._empty.append(block)
                else:
                    self._evictable[block.block_id] = block

    def find_prefix(self, block_hashes: Iterable[BlockHash]) -> list[KVCacheBlock]:
        """Blocks that hold the content of ``block_hashes``, up to the first that no block holds; nothing is taken."""
        found: list[KVCacheBlock] = []
        for block_hash in block_hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def find_window(self, block_hashes: Sequence[BlockHash], num_blocks: int) -> list[KVCacheBlock]:
        """The longest beginning of ``block_hashes`` of which the last ``num_blocks`` blocks hold the content, or all
        where it is shorter; nothing is taken. Places before these have :attr:`null_block`.
        """
        found: list[KVCacheBlock] = []
        num_before = len(block_hashes)
        while num_before and len(found) < num_blocks:
            num_before -= 1
            block = self._block_of.get(block_hashes[num_before])
            if block is None:
                found.clear()
            else:
                found.append(block)
        return [self.null_block] * num_before + found[::-1]

    def num_free_among(self, blocks: Sequence[KVCacheBlock]) -> int:
        """How many of ``blocks`` have no user."""
        return sum(block.ref_cnt == 0 for block in blocks)

    def touch(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Add a use to each of ``blocks``, which were found by their content."""
        for block in blocks:
            if block.ref_cnt == 0:
                del self._evictable[block.block_id]
            block.ref_cnt += 1

    def cache_block(self, block: KVCacheBlock, block_hash: BlockHash) -> None:
        """Let ``block``, which is in use and full, be found by ``block_hash``.

        Another block with the same content is not found any more: it was used earlier, so it would be given up sooner.
        """
        if (other := self._block_of.get(block_hash)) is not None:
            other.block_hash = None
            if other.ref_cnt == 0:
                del self._evictable[other.block_id]
                self._empty.append(other)
        block.block_hash = block_hash
        self._block_of[block_hash] = block

    def reset_prefix_cache(self) -> bool:
        """Forget all content. False, and nothing is changed, while a block is in use."""
        if self.num_free_blocks != self.num_blocks:
            return False
        for block in self._block_of.values():
            block.block_hash = None
        self._block_of.clear()
        self._empty += self._evictable.values()
        self._evictable.clear()
        return True

    def check_integrity(self) -> None:
        """Check that empty, evictable and used blocks are all blocks, each in one place, and that what is found by a
        hash is the block that holds it.

        Raises:
            EngineError: the accounting is broken; the text has the counts.
        """
        empty = {block.block_id for block in self._empty}
        evictable = {block.block_id for block in self._evictable.values()}
        in_use = {block.block_id for block in self.blocks if block.ref_cnt > 0}
        negative = [block for block in (*self.blocks, self.null_block) if block.ref_cnt < 0]
        free = empty | evictable
        num_entries, num_places = len(self._empty) + len(self._evictable), len(empty) + len(evictable) + len(in_use)
        if num_entries != len(free) or free & in_use or negative or num_places != self.num_blocks:
            raise EngineError(
                f"KV cache accounting is broken: {num_entries} entries of {len(free)} free blocks "
                f"({len(evictable)} with content), {len(in_use)} blocks in use, {self.num_blocks} in all; "
                f"free and in use: {sorted(free & in_use)}; released too often: {negative}"
            )
        self._check_hashes(evictable)

    def _take(self) -> KVCacheBlock:
        if self._empty:
            block = self._empty.pop()
        else:
            _, block = self._evictable.popitem(last=False)
            del self._block_of[block.block_hash]  # type: ignore[arg-type] # evictable blocks have one
            block.block_hash = None
        block.ref_cnt = 1
        return block

    def _check_hashes(self, evictable: set[int]) -> None:
        astray = [block for block_hash, block in self._block_of.items() if block.block_hash != block_hash]
        hashed = {block.block_id for block in self.blocks if block.block_hash is not None}
        lost = hashed ^ {block.block_id for block in self._block_of.values()}
        misplaced = evictable ^ {block_id for block_id in hashed if self.blocks[block_id].ref_cnt == 0}
        if astray or lost or misplaced:
            raise EngineError(
                f"prefix cache accounting is broken: found by a hash that is not theirs: {astray}; with a hash by "
                f"which they are not found: {sorted(lost)}; free, and in the wrong list for their content: "
                f"{sorted(misplaced)}"
            )
