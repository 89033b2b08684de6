"""An error of one process, raised again in another."""

from __future__ import annotations

import pytest

from vllm_ext.engine.processes import portable
from vllm_ext.engine.processes.failure import Failure
from vllm_ext.errors import EngineError, ModelError, PluginLoadError, VllmExtError, WorkerError


def passed_over(error: BaseException, process: str = "worker 1", rank: int | None = 1) -> VllmExtError:
    """What the other process raises, for an error that is raised in this one."""
    try:
        raise error
    except type(error) as caught:
        failure = Failure.of(caught, process, "in load_model()", rank)
    return portable.decode(portable.encode(failure)).as_error()


def test_a_foreign_error_names_process_place_and_cause_and_has_its_traceback():
    error = passed_over(ZeroDivisionError("in the kernel"))

    assert isinstance(error, WorkerError)
    assert error.rank == 1
    assert "worker 1 (PID" in str(error)
    assert "failed in load_model(): ZeroDivisionError: in the kernel" in str(error)
    assert "in passed_over" in error.remote_traceback


@pytest.mark.parametrize("cls", [EngineError, ModelError])
def test_an_error_of_ours_keeps_its_class_and_its_text_and_shows_none_of_our_frames(cls):
    error = passed_over(cls("no file"))

    assert type(error) is cls
    assert str(error).endswith(": no file")
    assert error.remote_traceback is None
    assert "in passed_over" in error.__notes__[0]


def test_a_plugins_name_passes_over():
    assert passed_over(PluginLoadError("it failed", plugin="npu")).plugin == "npu"


def test_the_rank_of_a_worker_passes_through_a_core_between():
    error = passed_over(WorkerError("worker 1 was killed", rank=1), "engine core", None)

    assert isinstance(error, WorkerError)
    assert error.rank == 1


def test_an_error_that_cannot_be_printed_passes_over_all_the_same():
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ValueError("not even that")

    assert "Unprintable" in str(passed_over(Unprintable()))


def test_text_that_is_no_text_passes_over():
    assert "bad" in str(passed_over(ValueError("bad \udc80 name")))
