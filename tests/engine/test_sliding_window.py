"""Where every layer has a sliding window, requests give back the blocks that none of their tokens sees any more.

The fake worker checks that whatever a token does see is still there.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.core_run import Run, engine
from support.fake_engine import continuation

from vllm_ext.engine.scheduling.block_pool import BlockPool
from vllm_ext.errors import EngineError, InvalidRequest

BLOCK = 4
LONG = list(range(10, 50))


def blocks_held(run: Run, request_id: str) -> list[int]:
    """Blocks that a request owns after each of its steps."""
    held = []
    request = run.scheduler.requests[request_id]
    while run.core.has_requests():
        run.step()
        if request_id in run.scheduler.requests:
            held.append(run.scheduler.kv_cache_manager.num_blocks_of(request))
    return held


def cached_of(run: Run, request_id: str) -> list[int]:
    """Tokens that the worker was told to find in the cache, at each admission of a request."""
    return [step.cached[request_id] for step in run.worker.steps if request_id in step.cached]


class TestWhatIsHeld:
    @pytest.mark.parametrize(
        ("run", "most"),
        [
            ({"sliding_windows": (8, 8)}, 3),
            ({"sliding_windows": (1, 1)}, 1),
            ({"sliding_windows": (2, 2)}, 2),
            ({"sliding_windows": (9, 3)}, 3),
            ({"sliding_windows": (10, 3)}, 4),
            ({"sliding_windows": (8, 8), "enable_prefix_caching": False}, 3),
        ],
        ids=str,
        indirect=["run"],
    )
    def test_a_generation_of_any_length_holds_its_largest_window_and_a_block(self, run, most):
        run.add("a", [1, 2, 3], max_tokens=100)
        held = blocks_held(run, "a")

        assert max(held) == max(held[50:]) == most
        assert run.tokens["a"] == continuation([1, 2, 3], 100)

    @engine(sliding_windows=(8, None))
    def test_all_of_it_where_one_layer_sees_everything(self, run):
        run.add("a", [1, 2, 3], max_tokens=100)

        assert blocks_held(run, "a")[-1] == -(-102 // BLOCK)

    @engine(sliding_windows=(8, 8), max_num_batched_tokens=12)
    def test_a_prompt_in_chunks_holds_its_window_and_a_chunk(self, run):
        run.add("a", LONG, max_tokens=2)

        assert blocks_held(run, "a") == [3, 5, 5, 3]
        assert [sum(step.num_scheduled_tokens.values()) for step in run.worker.steps] == [12, 12, 12, 4, 1, 0]


class TestLongerThanTheCache:
    @engine(sliding_windows=(8, 8), num_blocks=4)
    def test_a_prompt_comes_in_chunks_for_which_the_cache_has_room(self, run):
        run.add("a", LONG, max_tokens=30)
        run.finish()

        chunks = [step.num_scheduled_tokens.get("a") for step in run.worker.steps[:6]]
        # All 4 blocks at first; then each time the 2 that lie before the window.
        assert chunks == [16, 8, 8, 8, 1, 1]
        assert run.tokens["a"] == continuation(LONG, 30)

    @engine(sliding_windows=(13, 13), num_blocks=4, max_model_len=100)
    def test_no_more_than_the_window_has_to_fit_wherever_a_block_begins(self, run):
        run.add("a", LONG, max_tokens=1000)
        run.finish()

        assert run.tokens["a"] == continuation(LONG, 100 - len(LONG))

    @engine(sliding_windows=(14, 14), num_blocks=4)
    def test_a_window_that_may_not_fit_bounds_nothing(self, run):
        with pytest.raises(InvalidRequest, match="the prompt has 17 tokens, and the whole KV cache holds 16"):
            run.add("a", LONG[:17])
        run.add("b", LONG[:10], max_tokens=1000)
        run.finish()

        assert run.tokens["b"] == continuation(LONG[:10], 17 - 10)

    @engine(sliding_windows=(8, None), num_blocks=4)
    def test_a_layer_that_sees_everything_needs_everything(self, run):
        with pytest.raises(InvalidRequest, match="the prompt has 17 tokens, and the whole KV cache holds 16"):
            run.add("a", LONG[:17])

    @pytest.mark.parametrize("window", [13, 14])
    def test_that_requests_end_early_is_said_only_where_they_do(self, caplog, window):
        Run(sliding_windows=(window, window), num_blocks=4).core.shutdown()

        assert ("one that outgrows the cache ends early" in caplog.text) == (window == 14)


class TestAdmission:
    @engine(sliding_windows=(8, 8), num_blocks=8, max_num_batched_tokens=4)
    def test_a_prompt_needs_what_it_holds_at_once(self, run):
        for name in "ab":
            run.add(name, [*LONG, ord(name)], max_tokens=4)
        run.step()
        assert [request.request_id for request in run.scheduler.running] == ["a"], "the budget is spent"
        for _ in range(11):
            run.step()

        # 41 tokens each, and 32 slots; but a window, wherever it begins, and a step of 4 tokens have room in 4 blocks.
        assert [request.request_id for request in run.scheduler.running] == ["a", "b"]
        run.finish()
        assert run.scheduler.num_preemptions == 0

    @engine(sliding_windows=(8, 8), num_blocks=6, max_num_batched_tokens=8, enable_prefix_caching=False)
    def test_a_prompt_is_not_begun_before_that_fits(self, run):
        run.add("a", [1, 2, 3, 4, 5], max_tokens=9)
        run.step()
        run.add("long", LONG, max_tokens=2)

        # It needs 5 blocks, for a window, wherever it begins, and a step of 8 tokens; 2 or 3 are taken until step 9.
        run.finish()
        assert [step.new for step in run.worker.steps].index({"long": 0}) == 9

    @engine(sliding_windows=(12, 12), num_blocks=7, max_num_seqs=4)
    def test_requests_that_grow_are_preempted_and_computed_again(self, run):
        for name in "abc":
            run.add(name, [1, 2, 3, ord(name)], max_tokens=40)
        run.finish()

        assert run.scheduler.num_preemptions > 0
        assert run.tokens == {name: continuation([1, 2, 3, ord(name)], 40) for name in "abc"}


class TestPrefixes:
    @engine(sliding_windows=(8, 8), num_blocks=8, max_num_batched_tokens=8)
    def test_the_end_of_a_prefix_is_enough_where_its_beginning_is_gone(self, run):
        run.add("first", LONG, max_tokens=1)
        run.finish()
        manager = run.scheduler.kv_cache_manager
        run.add("second", LONG, max_tokens=30)
        request = run.scheduler.requests["second"]

        found = manager.get_computed_blocks(request)
        assert manager.block_pool.find_prefix(request.block_hashes) == []
        # Token 36 sees tokens 29 to 35 before it: blocks 7 and 8.
        assert found[:7] == [manager.block_pool.null_block] * 7
        assert [block.block_hash for block in found[7:]] == request.block_hashes[7:9]
        run.step()
        assert cached_of(run, "second") == [36]
        assert manager.num_blocks_of(request) == 3
        run.finish()
        assert run.tokens["second"] == continuation(LONG, 30)

    @engine(sliding_windows=(8, 8))
    def test_a_shorter_one_of_which_all_is_there(self, run):
        run.add("first", LONG, max_tokens=1)
        run.finish()
        run.add("second", [*LONG[:6], 1, 2, 3], max_tokens=3)
        run.finish()

        assert cached_of(run, "second") == [4]
        assert run.tokens["second"] == continuation([*LONG[:6], 1, 2, 3], 3)

    @engine(sliding_windows=(8, 8), num_blocks=20)
    def test_others_find_what_a_running_request_gave_back(self, run):
        run.add("first", LONG, max_tokens=20)
        for _ in range(10):
            run.step()
        manager = run.scheduler.kv_cache_manager
        assert manager.num_given_back_by(run.scheduler.requests["first"]) > 2
        run.add("second", LONG[:13], max_tokens=2)
        run.step()

        assert cached_of(run, "second") == [12]
        run.finish()
        assert run.tokens["second"] == continuation(LONG[:13], 2)

    @engine(sliding_windows=(1, 1), num_blocks=2, max_num_batched_tokens=3)
    def test_of_a_window_of_one_token_too(self, run):
        run.add("first", LONG, max_tokens=9)
        run.finish()
        run.add("second", [*LONG, *run.tokens["first"]], max_tokens=3)
        run.finish()

        assert cached_of(run, "second") == [48]
        assert run.tokens["second"] == continuation([*LONG, *run.tokens["first"]], 3)

    @engine(sliding_windows=(8, 8), num_blocks=9)
    def test_what_need_not_be_computed_counts_as_found(self, run):
        for name in ("first", "second"):
            run.add(name, LONG, max_tokens=1)
            run.finish()

        stats = run.core.get_stats()
        assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (40 + 40, 36)


@given(held=st.lists(st.booleans(), max_size=8), num_blocks=st.integers(1, 4))
def test_the_longest_beginning_is_found_of_which_the_last_blocks_are_there(held, num_blocks):
    pool = BlockPool(8)
    hashes = [bytes([index]) for index in range(len(held))]
    blocks = pool.allocate(len(held))
    for block, block_hash, is_held in zip(blocks, hashes, held, strict=True):
        if is_held:
            pool.cache_block(block, block_hash)

    found = pool.find_window(hashes, num_blocks)

    longest = max(end for end in range(len(held) + 1) if all(held[max(0, end - num_blocks) : end]))
    num_needed = min(longest, num_blocks)
    assert found == [pool.null_block] * (longest - num_needed) + blocks[longest - num_needed : longest]


class TestTheCheck:
    @pytest.fixture
    def busy(self):
        run = Run(sliding_windows=(8, 8))
        run.add("a", LONG, max_tokens=10)
        for _ in range(3):
            run.step()
        self.manager = run.scheduler.kv_cache_manager
        self.owned = self.manager._owned["a"]
        assert self.owned.num_given_back == 8
        return run

    def test_finds_a_block_that_was_given_back_although_it_is_seen(self, busy):
        self.manager._give_back(busy.scheduler.requests["a"], self.owned, 9)
        with pytest.raises(EngineError, match="do not fit each other: .*Request 'a'"):
            busy.scheduler.check_integrity()

    def test_finds_a_request_that_still_has_what_it_gave_back(self, busy):
        self.owned.blocks[2] = self.manager.block_pool.blocks[0]
        with pytest.raises(
            EngineError, match=r"'a' gave back its first 8 blocks, and these .* \[0, 1, 3, 4, 5, 6, 7\]"
        ):
            busy.scheduler.check_integrity()

    def test_finds_a_request_without_a_block_that_it_did_not_give_back(self, busy):
        self.owned.blocks[9] = self.manager.block_pool.null_block
        with pytest.raises(EngineError, match=r"'a' gave back its first 8 blocks, and these .* 6, 7, 9\]"):
            busy.scheduler.check_integrity()

    def test_finds_a_block_given_back_that_is_not_free(self, busy):
        owned = self.owned
        owned.blocks[owned.num_given_back] = self.manager.block_pool.null_block
        owned.num_given_back += 1
        with pytest.raises(EngineError, match="owned otherwise than counted"):
            self.manager.check_integrity()

    def test_finds_the_null_block_given_back(self, busy):
        self.manager.block_pool.free([self.manager.block_pool.null_block])
        with pytest.raises(EngineError, match="released too often"):
            busy.scheduler.check_integrity()
