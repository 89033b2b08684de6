"""A scheduler of one's own that fails to queue a request: that one ends, and others go on."""

from __future__ import annotations

import asyncio

import pytest
from support.async_engine import StepGate, all_sent, check_books, greedy, run, tokens_of, until
from support.fake_engine import continuation

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.scheduling.scheduler import Scheduler
from vllm_ext.errors import EngineError

BAD = [7, 7, 7]


class Before(Scheduler):
    """Fails before the request is in its books."""

    def add_request(self, request):
        if request.all_token_ids == BAD:
            raise KeyError("no place")
        super().add_request(request)


class After(Scheduler):
    """Fails when the request is queued."""

    def add_request(self, request):
        super().add_request(request)
        if request.all_token_ids == BAD:
            raise SystemExit(3)


class AtThird(Scheduler):
    """Takes the first two of several completions."""

    num_bad = 0

    def add_request(self, request):
        super().add_request(request)
        if request.all_token_ids == BAD:
            self.num_bad += 1
            if self.num_bad == 3:
                raise KeyError("no place")


CAUSES = [(Before, "KeyError: 'no place'"), (After, "SystemExit: 3")]


@pytest.mark.parametrize(
    "scheduler, params, cause",
    [
        *((scheduler, greedy(), cause) for scheduler, cause in CAUSES),
        (AtThird, SamplingParams(max_tokens=100, n=4), "KeyError: 'no place'"),
    ],
)
def test_it_ends_that_request_alone_of_an_async_engine(make_async_llm, caplog, scheduler, params, cause):
    gate = StepGate()
    engine = make_async_llm(gate, scheduler=scheduler)

    async def main():
        other = asyncio.ensure_future(tokens_of(engine, [1, 2], greedy()))
        await all_sent(engine, 1)
        await gate.make_steps(1)
        failed = asyncio.ensure_future(tokens_of(engine, BAD, params))
        # The core may have it before its second step is held, and answer at once.
        await until(lambda: failed.done() or len(engine._requests._core_ids) == 2)
        await gate.make_steps(1)

        message = rf"^scheduler \S*test_scheduler_faults\.{scheduler.__name__} failed in add_request\(\): {cause}$"
        with pytest.raises(EngineError, match=message):
            await failed

        gate.open()
        assert await other == continuation([1, 2], 5)
        await check_books(engine)
        assert await tokens_of(engine, [3], greedy()) == continuation([3], 5)
        assert engine.is_running

    run(main)
    assert "in add_request\n" in caplog.text, "the traceback is in the log"


@pytest.mark.parametrize("scheduler, cause", CAUSES)
def test_it_is_an_error_of_a_call(make_llm, scheduler, cause):
    llm = make_llm(scheduler=scheduler)
    stream = llm.stream([1, 2], greedy())
    next(stream)

    with pytest.raises(EngineError, match=rf"^scheduler .*{scheduler.__name__} failed in add_request\(\): {cause}$"):
        llm.generate([[3], BAD], greedy())

    *_, last = stream
    assert last.outputs[0].token_ids == continuation([1, 2], 5)
    assert llm.generate([3], greedy())[0].outputs[0].token_ids == continuation([3], 5)


def test_none_of_several_completions_stays_behind(make_llm):
    llm = make_llm(scheduler=AtThird)

    with pytest.raises(EngineError, match="AtThird failed in add_request"):
        llm.generate(BAD, SamplingParams(n=4))

    assert llm.llm_engine.get_stats().num_waiting_reqs == 0
    assert llm.generate([3], greedy())[0].outputs[0].token_ids == continuation([3], 5)
