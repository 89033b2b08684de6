"""Prefix caching: what is found, who shares it, what is given up first, and that no token changes by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.fake_engine import FakeDispatcher, FakeWorker, continuation, make_vllm_config

from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheGroupSpec, KVCacheSpec
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.scheduling.block_pool import BlockPool, KVCacheBlock
from vllm_ext.engine.scheduling.kv_cache_manager import KVCacheManager
from vllm_ext.engine.scheduling.request import EngineCoreOutput, Request
from vllm_ext.errors import EngineError

BLOCK = 4


class Run:
    """An engine core on the fake worker, and what its requests got."""

    def __init__(self, **options: object) -> None:
        dispatcher = FakeDispatcher(make_vllm_config(block_size=BLOCK, **options))
        self.core = EngineCore(dispatcher)
        assert isinstance(dispatcher.worker, FakeWorker)
        self.worker = dispatcher.worker
        self.manager = self.core.scheduler.kv_cache_manager
        self.outputs: dict[str, list[EngineCoreOutput]] = {}

    def add(self, request_id: str, prompt: list[int], max_tokens: int = 3) -> Request:
        request = Request(request_id, prompt, SamplingParams(temperature=0.0, max_tokens=max_tokens))
        self.outputs[request_id] = []
        self.core.add_request(request)
        return request

    def step(self) -> None:
        for output in self.core.step():
            self.outputs[output.request_id].append(output)
        self.core.check_integrity()

    def finish(self) -> None:
        while self.core.has_requests():
            self.step()

    def serve(self, request_id: str, prompt: list[int], max_tokens: int = 3) -> int:
        """Serve one request to its end, check its tokens, and return how many of its prompt were cached."""
        self.add(request_id, prompt, max_tokens)
        self.finish()
        tokens = [token for output in self.outputs[request_id] for token in output.new_token_ids]
        assert tokens == continuation(prompt, max_tokens)
        (num_cached,) = {output.num_cached_tokens for output in self.outputs[request_id]}
        return num_cached

    def cached_of(self, request_id: str) -> list[int]:
        """Tokens that the worker was told to find in the cache, at each admission of a request."""
        return [step.cached[request_id] for step in self.worker.steps if request_id in step.cached]


@pytest.fixture
def make_run() -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def make(**options: object) -> Run:
        made.append(Run(**options))
        return made[-1]

    yield make
    for run in made:
        run.finish()
        run.core.check_integrity()
        assert run.worker.requests == {}


def prompt_of(length: int, start: int = 10) -> list[int]:
    return list(range(start, start + length))


class TestWhatIsFound:
    @pytest.mark.parametrize(
        ("length", "num_cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (11, 8), (12, 8), (13, 12)]
    )
    def test_full_blocks_of_the_same_prompt_but_never_its_last_token(self, make_run, length, num_cached):
        run = make_run()
        assert run.serve("first", prompt_of(length), max_tokens=1) == 0

        assert run.serve("second", prompt_of(length), max_tokens=1) == num_cached
        assert run.worker.steps[-2].num_scheduled_tokens == {"second": length - num_cached}

    def test_the_same_beginning_and_no_more_than_that(self, make_run):
        run = make_run()
        run.serve("first", prompt_of(16))

        assert run.serve("second", [*prompt_of(9), *prompt_of(20, start=500)]) == 8

    def test_equal_tokens_behind_different_ones_are_different(self, make_run):
        run = make_run()
        run.serve("first", [1, 1, 1, 1, *prompt_of(12)])

        assert run.serve("second", [2, 2, 2, 2, *prompt_of(12)]) == 0

    def test_generated_tokens_are_found_as_a_prompt(self, make_run):
        run = make_run()
        run.serve("first", prompt_of(6), max_tokens=12)
        answer = continuation(prompt_of(6), 12)

        # 6 + 12 tokens, of which the last was never computed: 17, 4 full blocks.
        assert run.serve("second", [*prompt_of(6), *answer, 7, 7, 7]) == 16

    def test_requests_of_the_same_step_share(self, make_run):
        run = make_run()
        for name in "abc":
            run.add(name, prompt_of(10))
        run.step()

        assert run.worker.steps[0].cached == {"a": 0, "b": 8, "c": 8}
        assert run.manager.block_pool.num_blocks - run.manager.block_pool.num_free_blocks == 2 + 3

    def test_a_prompt_that_is_computed_in_chunks_is_found_chunk_by_chunk(self, make_run):
        run = make_run(max_num_batched_tokens=8, max_num_seqs=2)
        run.add("a", prompt_of(30))
        run.step()
        run.step()
        run.core.abort_requests(["a"])

        assert run.serve("b", prompt_of(30)) == 16

    def test_an_aborted_request_leaves_what_it_computed(self, make_run):
        run = make_run()
        run.add("a", prompt_of(10), max_tokens=50)
        run.step()
        run.core.abort_requests(["a"])

        assert run.serve("b", prompt_of(10)) == 8

    def test_nothing_without_prefix_caching(self, make_run):
        run = make_run(enable_prefix_caching=False)
        run.serve("first", prompt_of(16))

        assert run.serve("second", prompt_of(16)) == 0
        assert run.manager.block_pool.num_cached_blocks == 0
        assert run.core.get_stats().prefix_cache_queries == 0

    def test_nothing_by_a_request_that_must_compute_its_whole_prompt(self, make_run):
        run = make_run()
        run.serve("first", prompt_of(16))
        request = run.add("second", prompt_of(16))
        request.skip_reading_prefix_cache = True
        run.finish()

        assert run.cached_of("second") == [0]
        assert run.serve("third", prompt_of(16)) == 12

    def test_nothing_that_a_failed_step_should_have_computed(self, make_run):
        run = make_run()
        run.serve("first", prompt_of(9))

        def fail():
            run.worker.before_step = lambda: None
            raise ValueError("broken")

        run.worker.before_step = fail
        run.add("second", prompt_of(20))
        with pytest.raises(EngineError, match="broken"):
            run.step()

        assert run.serve("third", prompt_of(20)) == 0

    def test_what_was_looked_for_and_found_is_counted(self, make_run):
        run = make_run()
        run.serve("first", prompt_of(9))
        run.serve("second", prompt_of(13))
        stats = run.core.get_stats()

        assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (9 + 13, 8)


class TestPreemption:
    def test_a_preempted_request_finds_again_what_nobody_needed(self, make_run):
        run = make_run(num_blocks=8, max_model_len=40)
        for name in ("first", "last"):
            run.add(name, prompt_of(8, start=100 * len(name)), max_tokens=14)
        run.finish()

        assert run.core.get_stats().num_preemptions > 0
        assert len(run.cached_of("last")) > 1
        assert run.cached_of("last")[0] == 0
        # Its last block went first, to the one that it was preempted for.
        assert 0 < run.cached_of("last")[1] < 8 + 14
        # What the user hears is about the prompt, not about the recomputation.
        assert {output.num_cached_tokens for output in run.outputs["last"]} == {0}

    def test_a_block_that_two_share_outlives_the_preemption_of_one(self, make_run):
        run = make_run(num_blocks=7, max_model_len=28)
        for name in ("first", "last"):
            run.add(name, prompt_of(9), max_tokens=12)
        run.finish()

        assert run.core.get_stats().num_preemptions > 0
        assert run.cached_of("last")[0] == 8
        assert min(run.cached_of("last")) >= 8
        for name in ("first", "last"):
            tokens = [token for output in run.outputs[name] for token in output.new_token_ids]
            assert tokens == continuation(prompt_of(9), 12)

    def test_all_running_requests_can_be_preempted_for_a_reset(self, make_run):
        run = make_run()
        run.add("a", prompt_of(10), max_tokens=8)
        run.add("b", prompt_of(6, start=50), max_tokens=8)
        run.step()

        assert not run.core.reset_prefix_cache()
        assert run.core.reset_prefix_cache(reset_running_requests=True)
        assert [request.request_id for request in run.core.scheduler.waiting] == ["a", "b"]
        run.finish()

        assert run.cached_of("a") == run.cached_of("b") == [0, 0]
        assert run.core.get_stats().num_preemptions == 2
        assert [token for output in run.outputs["a"] for token in output.new_token_ids] == continuation(
            prompt_of(10), 8
        )


class TestReset:
    def test_nothing_is_found_after_it(self, make_run):
        run = make_run()
        run.serve("first", prompt_of(16))

        assert run.core.reset_prefix_cache()
        assert run.manager.block_pool.num_cached_blocks == 0
        assert run.serve("second", prompt_of(16)) == 0
        assert run.serve("third", prompt_of(16)) == 12

    def test_it_is_refused_while_blocks_are_in_use_and_changes_nothing(self, make_run):
        run = make_run()
        run.serve("first", prompt_of(16))
        run.add("running", [1], max_tokens=20)
        run.step()

        assert not run.core.reset_prefix_cache()
        assert run.serve("second", prompt_of(16)) == 12


def make_pool(num_blocks: int, contents: dict[int, bytes]) -> tuple[BlockPool, list[KVCacheBlock]]:
    """A pool all of whose blocks are in use; those of ``contents`` can be found."""
    pool = BlockPool(num_blocks)
    blocks = pool.allocate(num_blocks)
    for index, block_hash in contents.items():
        pool.cache_block(blocks[index], block_hash)
    return pool, blocks


def allocated(pool: BlockPool, num_blocks: int) -> list[int]:
    ids = [block.block_id for block in pool.allocate(num_blocks)]
    pool.check_integrity()
    return ids


class TestWhatIsGivenUp:
    def test_blocks_without_content_first_and_of_them_the_one_freed_last(self):
        pool, blocks = make_pool(5, {1: b"one", 3: b"three"})
        pool.free(blocks)

        assert allocated(pool, 3) == [4, 2, 0]
        assert pool.num_cached_blocks == 2

    def test_then_content_whose_last_user_left_the_longest_ago(self):
        pool, blocks = make_pool(3, {0: b"zero", 1: b"one", 2: b"two"})
        pool.free([blocks[1], blocks[2], blocks[0]])
        pool.touch(pool.find_prefix([b"one"]))
        pool.free([blocks[1]])

        assert allocated(pool, 3) == [2, 0, 1]
        assert pool.find_prefix([b"zero"]) == []

    def test_the_end_of_a_sequence_before_its_beginning(self, make_run):
        run = make_run(num_blocks=6)
        run.serve("first", prompt_of(13), max_tokens=1)
        run.serve("other", prompt_of(14, start=300), max_tokens=1)

        # 3 full blocks of the first request, 3 of the other in 6 blocks, of which one each is not full.
        assert run.serve("again", prompt_of(13), max_tokens=1) == 8

    def test_never_what_is_just_taken(self, make_run):
        run = make_run(num_blocks=4)
        run.serve("first", prompt_of(9), max_tokens=1)

        # 2 blocks are found; the other 2 have to do for the rest.
        assert run.serve("second", prompt_of(16), max_tokens=1) == 8

    def test_a_prompt_whose_rest_does_not_fit_takes_nothing(self):
        groups = (KVCacheGroupSpec(("layer",), KVCacheSpec(BLOCK)),)
        manager = KVCacheManager(KVCacheConfig(4, groups), BLOCK)
        first = Request("a", prompt_of(9), SamplingParams())
        manager.allocate_slots(first, 9)
        first.num_computed_tokens = 9
        manager.free(first)
        manager.allocate_slots(Request("b", prompt_of(8, start=50), SamplingParams()), 8)
        request = Request("c", prompt_of(13), SamplingParams())
        found = manager.get_computed_blocks(request)

        assert len(found) == 2
        # 2 blocks are found, but they are the 2 that are free, and 2 more are needed.
        assert manager.allocate_slots(request, 5, found, full_sequence_must_fit=True) is None
        assert [block.ref_cnt for block in found] == [0, 0]
        manager.check_integrity()

    def test_of_two_blocks_with_the_same_content_the_newer_is_found(self):
        pool, blocks = make_pool(2, {0: b"same"})
        pool.free([blocks[0]])
        pool.cache_block(blocks[1], b"same")

        assert pool.find_prefix([b"same"]) == [blocks[1]]
        assert blocks[0].block_hash is None
        pool.check_integrity()


class TestTheCheck:
    def test_finds_a_hash_that_leads_to_a_block_with_another_content(self):
        pool, blocks = make_pool(2, {0: b"zero"})
        blocks[0].block_hash = b"other"

        with pytest.raises(EngineError, match="found by a hash that is not theirs: .*KVCacheBlock 0"):
            pool.check_integrity()

    def test_finds_a_block_that_cannot_be_found(self):
        pool, blocks = make_pool(2, {})
        blocks[1].block_hash = b"lost"

        with pytest.raises(EngineError, match=r"by which they are not found: \[1\]"):
            pool.check_integrity()

    def test_finds_content_among_the_blocks_that_are_said_to_hold_none(self):
        pool, blocks = make_pool(2, {})
        pool.free(blocks)
        blocks[1].block_hash = b"x"
        pool._block_of[b"x"] = blocks[1]

        with pytest.raises(EngineError, match=r"in the wrong list for their content: \[1\]"):
            pool.check_integrity()
