"""Which request owns which blocks of the KV cache."""

from __future__ import annotations

from collections import Counter

from vllm_ext.contracts.kv_cache import KVCacheConfig
from vllm_ext.engine.block_pool import BlockPool, KVCacheBlock
from vllm_ext.engine.request import Request
from vllm_ext.errors import EngineError


class KVCacheManager:
    """Gives blocks to requests as their sequences grow, and takes them back.

    Every layer has the same number of blocks, so all KV cache groups of a request use the same block numbers.
    """

    def __init__(self, kv_cache_config: KVCacheConfig, block_size: int) -> None:
        self.block_size = block_size
        self.block_pool = BlockPool(kv_cache_config.num_blocks)
        self._num_groups = len(kv_cache_config.kv_cache_groups)
        self._blocks: dict[str, list[KVCacheBlock]] = {}

    @property
    def capacity(self) -> int:
        """Tokens that the whole cache holds."""
        return self.block_pool.num_blocks * self.block_size

    def allocate_slots(
        self, request: Request, num_new_tokens: int, *, full_sequence_must_fit: bool = False
    ) -> list[int] | None:
        """Make room for the next ``num_new_tokens`` tokens after those computed.

        Args:
            full_sequence_must_fit: give nothing unless all tokens that the request has now would fit.

        Returns: numbers of the blocks added, often none; ``None``, and nothing is changed, where too few are free.
        """
        owned = self._blocks.get(request.request_id)
        num_owned = 0 if owned is None else len(owned)
        missing = self._num_blocks_for(request.num_computed_tokens + num_new_tokens) - num_owned
        if missing <= 0:
            return []
        needed = self._num_blocks_for(request.num_tokens) - num_owned if full_sequence_must_fit else missing
        if needed > self.block_pool.num_free_blocks:
            return None
        added = self.block_pool.allocate(missing)
        if owned is None:
            self._blocks[request.request_id] = added
        else:
            owned.extend(added)
        return [block.block_id for block in added]

    def group_block_ids(self, block_ids: list[int]) -> tuple[list[int], ...]:
        """``block_ids`` once for each KV cache group."""
        return tuple(block_ids.copy() for _ in range(self._num_groups))

    def free(self, request: Request) -> None:
        """Take all blocks of ``request`` back, the end of its sequence first; nothing to do where it has none."""
        self.block_pool.free(reversed(self._blocks.pop(request.request_id, [])))

    def reset(self) -> None:
        """Forget all requests; every block is free again."""
        self._blocks.clear()
        self.block_pool = BlockPool(self.block_pool.num_blocks)

    def check_integrity(self) -> None:
        """Check that free blocks plus blocks owned by requests are all blocks, and that owners and uses agree.

        Raises:
            EngineError: the accounting is broken.
        """
        self.block_pool.check_integrity()
        uses = Counter(block.block_id for blocks in self._blocks.values() for block in blocks)
        wrong = [block for block in self.block_pool.blocks if block.ref_cnt != uses[block.block_id]]
        if wrong:
            raise EngineError(f"KV cache accounting is broken: owned otherwise than counted: {wrong}")

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
