"""Which request owns which blocks of the KV cache, and what of a prompt is in the cache already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_ext.contracts.kv_cache import KVCacheConfig
from vllm_ext.engine.block_hash import extend_hashes
from vllm_ext.engine.block_pool import BlockPool, KVCacheBlock
from vllm_ext.engine.request import Request
from vllm_ext.errors import EngineError


@dataclass(slots=True)
class PrefixCacheStats:
    """What was looked for in the prefix cache since the engine started, in tokens, at each admission of a request."""

    requests: int = 0
    queries: int = 0
    """Tokens of these requests."""
    hits: int = 0
    """Those that were in the cache."""


@dataclass(slots=True)
class _Owned:
    """The blocks of one request, in sequence order; the first ``num_cached`` are found by what they hold, or were."""

    blocks: list[KVCacheBlock]
    num_cached: int


class KVCacheManager:
    """Gives blocks to requests as their sequences grow, and takes them back.

    Every layer has the same number of blocks, so all KV cache groups of a request use the same block numbers, and what
    is in the cache of one group is in that of all.

    With prefix caching a block that is full is entered by its content when its tokens are scheduled: requests of the
    same step may share it already. That is right because a layer stores all keys and values of a step before it
    attends, and because a step that fails forgets everything (:meth:`reset`).
    """

    def __init__(self, kv_cache_config: KVCacheConfig, block_size: int, *, enable_caching: bool = True) -> None:
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.block_pool = BlockPool(kv_cache_config.num_blocks)
        self.prefix_cache_stats = PrefixCacheStats()
        self._num_groups = len(kv_cache_config.kv_cache_groups)
        self._owned: dict[str, _Owned] = {}

    @property
    def capacity(self) -> int:
        """Tokens that the whole cache holds."""
        return self.block_pool.num_blocks * self.block_size

    @property
    def usage(self) -> float:
        """The share of blocks that requests own, from 0 to 1."""
        return 1 - self.block_pool.num_free_blocks / self.block_pool.num_blocks

    def get_computed_blocks(self, request: Request) -> list[KVCacheBlock]:
        """Blocks that hold the first tokens of ``request``, which owns none yet; nothing is taken.

        Its last token is never among them: it has to be computed to know what comes next.
        """
        if not self.enable_caching or request.skip_reading_prefix_cache:
            return []
        num_blocks = (request.num_tokens - 1) // self.block_size
        self._hash(request, num_blocks)
        return self.block_pool.find_prefix(request.block_hashes[:num_blocks])

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[KVCacheBlock] = (),
        *,
        full_sequence_must_fit: bool = False,
    ) -> list[int] | None:
        """Make room for the next ``num_new_tokens`` tokens after those computed.

        Args:
            computed_blocks: what :meth:`get_computed_blocks` has just returned, for a request without blocks.
            full_sequence_must_fit: give nothing unless all tokens that the request has now would fit.

        Returns: numbers of the blocks added, the computed ones first, often none; ``None``, and nothing is changed,
            where too few are free.
        """
        owned = self._owned.get(request.request_id)
        num_owned = len(computed_blocks) if owned is None else len(owned.blocks)
        num_tokens = request.num_computed_tokens + len(computed_blocks) * self.block_size + num_new_tokens
        missing = max(0, self._num_blocks_for(num_tokens) - num_owned)
        needed = self._num_blocks_for(request.num_tokens) - num_owned if full_sequence_must_fit else missing
        if needed > self.block_pool.num_free_blocks - self.block_pool.num_free_among(computed_blocks):
            return None
        # First what was found, so that it is not given up for the rest.
        self.block_pool.touch(computed_blocks)
        added = [*computed_blocks, *self.block_pool.allocate(missing)]
        if owned is None:
            owned = self._owned[request.request_id] = _Owned(added, len(computed_blocks))
            self._count(request, len(computed_blocks))
        else:
            owned.blocks += added
        request.num_slots = len(owned.blocks) * self.block_size
        self._cache_full_blocks(request, owned, num_tokens)
        return [block.block_id for block in added]

    def group_block_ids(self, block_ids: list[int]) -> tuple[list[int], ...]:
        """``block_ids`` once for each KV cache group."""
        return tuple(block_ids.copy() for _ in range(self._num_groups))

    def free(self, request: Request) -> None:
        """Take all blocks of ``request`` back, the end of its sequence first; nothing to do where it has none.

        What its computed tokens left in full blocks stays in the cache.
        """
        owned = self._owned.pop(request.request_id, None)
        if owned is not None:
            self._cache_full_blocks(request, owned, request.num_computed_tokens)
            self.block_pool.free(reversed(owned.blocks))
        request.num_slots = 0

    def reset_prefix_cache(self) -> bool:
        """Forget what blocks hold. False, and nothing is changed, while a request owns any."""
        return self.block_pool.reset_prefix_cache()

    def reset(self) -> None:
        """Forget all requests and all content; every block is free again."""
        self._owned.clear()
        self.block_pool = BlockPool(self.block_pool.num_blocks)

    def check_integrity(self) -> None:
        """Check that free blocks plus blocks owned by requests are all blocks, that owners and uses agree, and that
        whatever is found by a hash is where the pool says.

        Raises:
            EngineError: the accounting is broken.
        """
        self.block_pool.check_integrity()
        uses = Counter(block.block_id for owned in self._owned.values() for block in owned.blocks)
        wrong = [block for block in self.block_pool.blocks if block.ref_cnt != uses[block.block_id]]
        if wrong:
            raise EngineError(f"KV cache accounting is broken: owned otherwise than counted: {wrong}")

    def num_blocks_of(self, request: Request) -> int:
        """Blocks that ``request`` owns."""
        owned = self._owned.get(request.request_id)
        return 0 if owned is None else len(owned.blocks)

    def _cache_full_blocks(self, request: Request, owned: _Owned, num_tokens: int) -> None:
        """Enter those of the request's blocks that its first ``num_tokens`` tokens fill."""
        num_full = min(num_tokens, request.num_tokens) // self.block_size
        if num_full <= owned.num_cached or not self.enable_caching:
            return
        self._hash(request, num_full)
        for index in range(owned.num_cached, num_full):
            self.block_pool.cache_block(owned.blocks[index], request.block_hashes[index])
        owned.num_cached = num_full

    def _hash(self, request: Request, num_blocks: int) -> None:
        if len(request.block_hashes) < num_blocks:
            extend_hashes(request.block_hashes, request.all_token_ids, self.block_size, num_blocks)

    def _count(self, request: Request, num_found: int) -> None:
        if self.enable_caching and not request.skip_reading_prefix_cache:
            self.prefix_cache_stats.requests += 1
            self.prefix_cache_stats.queries += request.num_tokens
            self.prefix_cache_stats.hits += num_found * self.block_size

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
