"""Faults in worker processes: each ends within 30 seconds, in an error that names rank and cause."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest
from support.async_engine import greedy

from vllm_ext.errors import EngineError, WorkerError

BOUND_S = 30


@pytest.fixture(autouse=True)
def bound(mark: str) -> Iterator[None]:
    """A test that takes longer is ended, with the stack of every thread."""
    faulthandler.dump_traceback_later(BOUND_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def faulty(name: str) -> dict[str, object]:
    return {"overrides": {"worker.cls": f"support.faulty_workers.{name}"}}


def test_a_worker_killed_during_a_step_is_named_and_a_second_engine_starts(make_multiproc_llm):
    llm = make_multiproc_llm(**faulty("KilledInAStep"))

    with pytest.raises(EngineError, match=r"worker 1 .*was killed by SIGKILL in execute_model"):
        llm.generate([1, 2], greedy())

    assert make_multiproc_llm().generate([1, 2], greedy(2))


@pytest.mark.parametrize(("name", "ranks"), [("OneFailsToLoad", "1"), ("AllFailToLoad", "[01]")])
def test_a_worker_that_cannot_load_its_model_is_named_with_its_traceback(make_multiproc_llm, name, ranks):
    with pytest.raises(EngineError, match=rf"worker {ranks} .*no weights here") as caught:
        make_multiproc_llm(**faulty(name))

    assert "faulty_workers.py" in (caught.value.remote_traceback or "")


def test_a_worker_that_fails_in_a_step_is_named_with_its_traceback(make_multiproc_llm):
    llm = make_multiproc_llm(**faulty("OneFailsInAStep"))

    with pytest.raises(EngineError, match=r"worker 1 .*no step here") as caught:
        llm.generate([1, 2], greedy())
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerError)
    assert cause.rank == 1
    assert "faulty_workers.py" in (cause.remote_traceback or "")
