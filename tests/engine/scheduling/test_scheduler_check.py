"""``check_integrity`` finds what no step should ever leave behind."""

from __future__ import annotations

import pytest
from support.core_run import Run

from vllm_ext.engine.scheduling.request import RequestStatus
from vllm_ext.errors import EngineError


class TestTheCheck:
    """``check_integrity`` finds what no step should ever leave behind."""

    @pytest.fixture
    def busy(self):
        run = Run(max_num_seqs=2)
        for name in ("a", "b", "c", "d"):
            run.add(name, [1] * 6)
        run.step()
        return run

    def test_a_request_in_no_list(self, busy):
        busy.scheduler.waiting.pop(0)
        with pytest.raises(EngineError, match="requests in flight and requests in the lists differ"):
            busy.scheduler.check_integrity()

    def test_requests_out_of_order(self, busy):
        busy.scheduler.running.reverse()
        with pytest.raises(EngineError, match="requests are out of their order"):
            busy.scheduler.check_integrity()

    @pytest.mark.parametrize(
        ("name", "attribute", "value"),
        [
            ("a", "num_computed_tokens", 7),
            ("a", "num_slots", 4),
            ("a", "status", RequestStatus.WAITING),
            ("c", "status", RequestStatus.RUNNING),
            ("c", "num_computed_tokens", 1),
        ],
    )
    def test_a_request_whose_books_do_not_fit(self, busy, name, attribute, value):
        setattr(busy.scheduler.requests[name], attribute, value)
        with pytest.raises(EngineError, match=f"do not fit each other: .*Request '{name}'"):
            busy.scheduler.check_integrity()

    def test_blocks_in_use_though_nothing_is_in_flight(self, run):
        blocks = run.scheduler.kv_cache_manager.block_pool.allocate(1)
        run.scheduler.kv_cache_manager.check_integrity = lambda: None
        with pytest.raises(EngineError, match="no request is in flight, yet only"):
            run.scheduler.check_integrity()
        del run.scheduler.kv_cache_manager.check_integrity
        run.scheduler.kv_cache_manager.block_pool.free(blocks)
