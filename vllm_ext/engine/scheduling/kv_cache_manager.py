"""Which request owns which blocks of the KV cache, and what of a prompt is in the cache already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_ext.contracts.kv_cache import KVCacheConfig
from vllm_ext.engine.scheduling.block_hash import extend_hashes
from vllm_ext.engine.scheduling.block_pool import BlockPool, KVCacheBlock
from vllm_ext.engine.scheduling.kv_cache_config import common_window
from vllm_ext.engine.scheduling.request import Request
from vllm_ext.errors import EngineError


@dataclass(slots=True)
class PrefixCacheTotals:
    """What was looked for in the prefix cache since the engine started, in tokens, at each admission of a request."""

    requests: int = 0
    queries: int = 0
    """Tokens of these requests."""
    hits: int = 0
    """Those that were in the cache."""


@dataclass(slots=True)
class _Owned:
    """The blocks of one request, in sequence order; the first ``num_cached`` are found by what they hold, or were.

    The first ``num_given_back`` are not the request's any more; the null block has their places.
    """

    blocks: list[KVCacheBlock]
    num_cached: int
    num_given_back: int


class KVCacheManager:
    """Gives blocks to requests as their sequences grow, and takes them back.

    Every layer has the same number of blocks, so all KV cache groups of a request use the same block numbers, and what
    is in the cache of one group is in that of all.

    With prefix caching a block that is full is entered by its content when its tokens are scheduled: requests of the
    same step may share it already. That is right because a layer stores all keys and values of a step before it
    attends, and because a step that fails forgets everything (:meth:`reset`).

    Where every layer has a sliding window, a request gives back the blocks that lie wholly before the largest of them,
    at the next block that it needs. What they hold is found until they are used for something else; a prompt needs no
    more of the cache than its first token to compute sees. A model in which one layer sees all tokens keeps all blocks
    of a request, because its layers share block numbers.

    Args:
        block_size: tokens in a block.
        enable_caching: whether prompts that begin alike share blocks.
        max_num_batched_tokens: the most that a step computes; what the cache holds when omitted. It tells how many
            blocks a request with a window needs at once.
    """

    def __init__(
        self,
        kv_cache_config: KVCacheConfig,
        block_size: int,
        *,
        enable_caching: bool = True,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.sliding_window = common_window(kv_cache_config)
        """The largest of all layers, in tokens; ``None`` where one of them sees everything."""
        self.block_pool = BlockPool(kv_cache_config.num_blocks)
        num_seen = (self.sliding_window or 1) - 1
        self._num_window_blocks = max(1, self._num_blocks_for(num_seen))
        """Blocks that a token at the beginning of one sees of before it; one at least, so that a hit has a block."""
        longest = num_seen + (max_num_batched_tokens or self.block_pool.num_blocks * block_size)
        self._max_blocks_held = min(self.block_pool.num_blocks, self._num_blocks_for(longest) + 1)
        """By a request with a window in a step; it need not begin where a block does."""
        self.prefix_cache_stats = PrefixCacheTotals()
        self._num_groups = len(kv_cache_config.kv_cache_groups)
        self._owned: dict[str, _Owned] = {}

    @property
    def usage(self) -> float:
        """The share of blocks that requests own, from 0 to 1."""
        return 1 - self.block_pool.num_free_blocks / self.block_pool.num_blocks

    def get_computed_blocks(self, request: Request) -> list[KVCacheBlock]:
        """Blocks that hold the first tokens of ``request``, which owns none yet; nothing is taken.

        Its last token is never among them: it has to be computed to know what comes next. With a window it is enough
        that the last of these blocks are there; the null block stands for those that no token to compute sees.
        """
        if not self.enable_caching or request.skip_reading_prefix_cache:
            return []
        num_blocks = (request.num_tokens - 1) // self.block_size
        self._hash(request, num_blocks)
        block_hashes = request.block_hashes[:num_blocks]
        if self.sliding_window is None:
            return self.block_pool.find_prefix(block_hashes)
        return self.block_pool.find_window(block_hashes, self._num_window_blocks)

    def num_unseen_blocks(self, num_computed_tokens: int) -> int:
        """How many of the first blocks of a request no token sees that follows ``num_computed_tokens`` others."""
        if self.sliding_window is None:
            return 0
        return max(0, num_computed_tokens + 1 - self.sliding_window) // self.block_size

    def max_num_new_tokens(self, num_computed_tokens: int) -> int:
        """Tokens that the whole cache has slots for, behind what has to stay of ``num_computed_tokens`` others."""
        num_blocks = self.num_unseen_blocks(num_computed_tokens) + self.block_pool.num_blocks
        return num_blocks * self.block_size - num_computed_tokens

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[KVCacheBlock] = (),
        *,
        full_sequence_must_fit: bool = False,
    ) -> list[int] | None:
        """Make room for the next ``num_new_tokens`` tokens after those computed. With a window, what these do not see
        is given back first.

        Args:
            computed_blocks: what :meth:`get_computed_blocks` has just returned, for a request without blocks.
            full_sequence_must_fit: give nothing unless all tokens that the request has now would fit, with a window as
                many of them as it needs at once.

        Returns: numbers of the blocks added, the computed ones first, often none; ``None``, and nothing is given,
            where too few are free.
        """
        num_computed = request.num_computed_tokens + len(computed_blocks) * self.block_size
        num_unseen = self.num_unseen_blocks(num_computed)
        found: Sequence[KVCacheBlock] = ()
        owned = self._owned.get(request.request_id)
        if is_new := owned is None:
            found = computed_blocks[num_unseen:]
            num_without = len(computed_blocks) - len(found)
            places = [*[self.block_pool.null_block] * num_without, *found]
            owned = _Owned(places, num_cached=len(places), num_given_back=num_without)
        else:
            self._give_back(request, owned, num_unseen)
        num_places = len(owned.blocks)
        needed = missing = max(0, self._num_blocks_for(num_computed + num_new_tokens) - num_places)
        if full_sequence_must_fit:
            needed = max(missing, self._num_missing(request, owned))
        if needed > self.block_pool.num_free_blocks - self.block_pool.num_free_among(found):
            return None
        # First what was found, so that it is not given up for the rest.
        self.block_pool.touch(found)
        owned.blocks += self.block_pool.allocate(missing)
        if is_new:
            self._owned[request.request_id] = owned
            self._count(request, num_places)
        request.num_slots = len(owned.blocks) * self.block_size
        self._cache_full_blocks(request, owned, num_computed + num_new_tokens)
        return [block.block_id for block in (owned.blocks if is_new else owned.blocks[num_places:])]

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
            self.block_pool.free(reversed(owned.blocks[owned.num_given_back :]))
        request.num_slots = 0

    def reset_prefix_cache(self) -> bool:
        """Forget what blocks hold. False, and nothing is changed, while a request owns any."""
        return self.block_pool.reset_prefix_cache()

    def reset(self) -> None:
        """Forget all requests and all content; every block is free again."""
        self._owned.clear()
        self.block_pool = BlockPool(self.block_pool.num_blocks)

    def check_integrity(self) -> None:
        """Check that free blocks plus blocks owned by requests are all blocks, that owners and uses agree, that the
        null block is where blocks were given back and nowhere else, and that whatever is found by a hash is where the
        pool says.

        Raises:
            EngineError: the accounting is broken.
        """
        self.block_pool.check_integrity()
        null_block = self.block_pool.null_block
        uses: Counter[int] = Counter()
        for request_id, owned in self._owned.items():
            places = [index for index, block in enumerate(owned.blocks) if block is null_block]
            if places != list(range(owned.num_given_back)):
                raise EngineError(
                    f"KV cache accounting is broken: request {request_id!r} gave back its first {owned.num_given_back} "
                    f"blocks, and these of its places have none: {places}"
                )
            uses.update(block.block_id for block in owned.blocks[owned.num_given_back :])
        wrong = [block for block in self.block_pool.blocks if block.ref_cnt != uses[block.block_id]]
        if wrong:
            raise EngineError(f"KV cache accounting is broken: owned otherwise than counted: {wrong}")

    def num_blocks_of(self, request: Request) -> int:
        """Blocks that ``request`` owns."""
        owned = self._owned.get(request.request_id)
        return 0 if owned is None else len(owned.blocks) - owned.num_given_back

    def num_given_back_by(self, request: Request) -> int:
        """Blocks at the beginning of ``request`` that it gave back, or never had: no token to compute sees them."""
        owned = self._owned.get(request.request_id)
        return 0 if owned is None else owned.num_given_back

    def _num_missing(self, request: Request, owned: _Owned) -> int:
        """Blocks that all tokens of ``request`` need besides those it owns; with a window, at any one time."""
        num_missing = self._num_blocks_for(request.num_tokens) - len(owned.blocks)
        if self.sliding_window is None:
            return num_missing
        return min(num_missing, self._max_blocks_held - (len(owned.blocks) - owned.num_given_back))

    def _give_back(self, request: Request, owned: _Owned, num_unseen: int) -> None:
        """Give back those of the first ``num_unseen`` blocks that ``request`` still has."""
        first = owned.num_given_back
        if num_unseen > first:
            # What they hold can be found from then on, if it was not before.
            self._cache_full_blocks(request, owned, request.num_computed_tokens)
            self.block_pool.free(reversed(owned.blocks[first:num_unseen]))
            owned.blocks[first:num_unseen] = [self.block_pool.null_block] * (num_unseen - first)
            owned.num_given_back = num_unseen

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
