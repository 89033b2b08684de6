"""Blocks of the KV cache: who owns which, and that none is lost."""

from __future__ import annotations

import pytest

from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheGroupSpec, KVCacheSpec
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.scheduling.block_pool import BlockPool
from vllm_ext.engine.scheduling.kv_cache_manager import KVCacheManager
from vllm_ext.engine.scheduling.request import Request
from vllm_ext.errors import EngineError


def make_manager(num_blocks: int = 4, num_groups: int = 1, *, enable_caching: bool = True) -> KVCacheManager:
    groups = (KVCacheGroupSpec(("layer",), KVCacheSpec(4)),) * num_groups
    return KVCacheManager(KVCacheConfig(num_blocks, groups), block_size=4, enable_caching=enable_caching)


def make_request(num_tokens: int, request_id: str = "a") -> Request:
    return Request(request_id, [1] * num_tokens, SamplingParams())


def test_blocks_are_added_only_where_a_sequence_crosses_their_border():
    manager, request = make_manager(), make_request(9)

    added = []
    for num_tokens in (3, 1, 1, 4):
        added.append(len(manager.allocate_slots(request, num_tokens)))
        request.num_computed_tokens += num_tokens

    assert added == [1, 0, 1, 1]


def test_nothing_is_taken_where_too_few_blocks_are_free():
    manager = make_manager(num_blocks=4)
    manager.allocate_slots(make_request(12, "a"), 12)

    assert manager.allocate_slots(make_request(8, "b"), 8) is None
    assert manager.block_pool.num_free_blocks == 1


def test_a_chunk_can_be_refused_because_the_whole_sequence_would_not_fit():
    manager, request = make_manager(num_blocks=2), make_request(9)

    assert manager.allocate_slots(request, 4, full_sequence_must_fit=True) is None
    assert manager.allocate_slots(request, 4) == [0]


def test_blocks_freed_last_are_used_again_first_without_prefix_caching():
    manager = make_manager(num_blocks=4, enable_caching=False)
    first = make_request(8, "a")
    manager.allocate_slots(first, 8)
    manager.free(first)

    assert manager.allocate_slots(make_request(16, "b"), 16) == [0, 1, 2, 3]


def test_each_group_gets_its_own_list_of_the_same_blocks():
    manager = make_manager(num_groups=2)

    one, other = manager.group_block_ids([3, 1])

    assert one == other == [3, 1]
    assert one is not other


def test_freeing_a_request_without_blocks_changes_nothing():
    manager = make_manager()
    manager.free(make_request(4))

    manager.check_integrity()
    assert manager.block_pool.num_free_blocks == 4


def test_asking_the_pool_for_more_than_is_free_is_an_error():
    with pytest.raises(EngineError, match="3 KV cache blocks were asked for and 2 are free"):
        BlockPool(2).allocate(3)


def test_the_check_finds_a_block_that_is_free_and_in_use():
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.free([block])
    block.ref_cnt = 1

    with pytest.raises(EngineError, match=r"free and in use: \[0\]"):
        pool.check_integrity()


def test_the_check_finds_a_block_that_was_freed_twice():
    pool = BlockPool(3)
    blocks = pool.allocate(1)
    pool.free(blocks)
    pool.free(blocks)

    with pytest.raises(EngineError, match="released too often"):
        pool.check_integrity()


def test_the_check_finds_a_block_that_nobody_gives_back():
    manager = make_manager()
    manager.block_pool.allocate(1)

    with pytest.raises(EngineError, match="owned otherwise than counted.*KVCacheBlock 0"):
        manager.check_integrity()
