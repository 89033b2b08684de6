"""Workers in processes of their own: the same tokens, calls of all workers, and the end of one of them."""

from __future__ import annotations

import os
import signal
from types import FrameType

import pytest
import torch
from support.async_engine import HANG_S, greedy
from support.called_in_workers import (
    function_of_no_file,
    late_and_large,
    needs_more,
    num_bytes_of,
    num_threads_at_start,
    rank_and_sum,
)
from support.processes import marked_processes, wait_until

from vllm_ext.dispatch.hooks import THREADS_AT_START
from vllm_ext.engine.llm import LLM
from vllm_ext.engine.processes.channel import Channel
from vllm_ext.errors import EngineError, WorkerError

PROMPTS = [[5, 6, 7], [8, 9], [10] * 40]


def tokens(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, greedy(8))]


def test_two_workers_give_the_tokens_of_one_in_this_process(multiproc_llm, random_llama):
    with LLM(random_llama, dtype="float32", platform="cpu") as one:
        expected = tokens(one)

    assert tokens(multiproc_llm) == expected


@pytest.mark.slow
def test_numpys_integers_are_tokens_of_a_worker_process_too(make_multiproc_llm, random_llama):
    with LLM(random_llama, dtype="float32", platform="cpu") as one:
        expected = tokens(one)

    numpys = make_multiproc_llm(tensor_parallel_size=1, overrides={"worker.cls": "support.faulty_workers.NumpyTokens"})

    assert tokens(numpys) == expected


@pytest.mark.parametrize(("set_by_hook", "expected"), [pytest.param(None, "1", marks=pytest.mark.slow), ("3", "3")])
def test_workers_share_the_threads_unless_a_hook_says_how_many_each_gets(
    make_multiproc_llm, plugins, monkeypatch, set_by_hook, expected
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(THREADS_AT_START))
    code = (
        "import os\nfrom vllm_ext.platforms.cpu import CpuPlatform\n"
        "class Npu(CpuPlatform):\n"
        "    @classmethod\n"
        "    def check_and_update_config(cls, vllm_config):\n"
        "        super().check_and_update_config(vllm_config)\n"
        f"        if {set_by_hook!r}: os.environ['OMP_NUM_THREADS'] = {set_by_hook!r}\n"
        "def find(): return 'npu_platform.Npu'\n"
    )
    plugins.distribution("npu", {"vllm.platform_plugins": ["npu = npu_platform:find"]}, {"npu_platform.py": code})

    llm = make_multiproc_llm(platform="npu")

    assert llm.collective_rpc(num_threads_at_start) == [expected] * 2


def test_every_process_proves_what_it_runs(marked_llm):
    llm, mark = marked_llm
    here, *workers = llm.receipts

    assert (here.name, here.pid) == ("front end", os.getpid())
    assert [receipt.name for receipt in workers] == ["worker 0", "worker 1"]
    assert {receipt.pid for receipt in workers} == set(marked_processes(mark))
    assert {(receipt.fingerprint, receipt.active) for receipt in workers} == {(here.fingerprint, here.active)}
    assert here.active == ("vllm_ext.platforms: vllm-ext:cpu",)


def test_a_call_reaches_all_workers_and_results_come_by_rank(multiproc_llm):
    assert multiproc_llm.collective_rpc(rank_and_sum, args=(1,), kwargs={"b": 2}) == [(0, 3), (1, 3)]


def test_a_large_call_after_one_whose_large_answer_is_late_is_answered(multiproc_llm, tmp_path):
    """While a worker sends, it reads nothing."""
    with pytest.raises(EngineError, match=r"did not answer in time in late_and_large\(\)"):
        multiproc_llm.collective_rpc(late_and_large, timeout=0.1, args=(str(tmp_path / "now"), 10_000_000))
    (tmp_path / "now").touch()

    assert multiproc_llm.collective_rpc(num_bytes_of, timeout=HANG_S, args=(torch.zeros(2_000_000),)) == [8_000_000] * 2
    assert len(tokens(multiproc_llm)) == 3


def test_a_call_while_workers_are_at_another_is_out_of_time_and_the_engine_goes_on(multiproc_llm, tmp_path):
    for function, args in ((late_and_large, (str(tmp_path / "now"), 10)), (num_bytes_of, (torch.zeros(1),))):
        with pytest.raises(EngineError, match=rf"did not answer in time in {function.__name__}\(\)"):
            multiproc_llm.collective_rpc(function, timeout=0.1, args=args)
    (tmp_path / "now").touch()

    assert multiproc_llm.collective_rpc(rank_and_sum, args=(1,), kwargs={"b": 2}) == [(0, 3), (1, 3)]


def test_what_cannot_pass_to_a_worker_is_said_and_the_engine_goes_on(multiproc_llm):
    with pytest.raises(EngineError, match=r"cannot pass to another process"):
        multiproc_llm.collective_rpc(lambda worker: None)
    assert multiproc_llm.collective_rpc(rank_and_sum, args=(1,), kwargs={"b": 1}) == [(0, 2), (1, 2)]


def test_a_result_that_cannot_be_made_here_is_said_and_the_engine_goes_on(multiproc_llm):
    with pytest.raises(EngineError, match=r"got a value of another process that it cannot make"):
        multiproc_llm.collective_rpc(needs_more)
    assert multiproc_llm.collective_rpc(rank_and_sum, timeout=HANG_S, args=(1,), kwargs={"b": 1}) == [(0, 2), (1, 2)]


def test_a_function_that_no_worker_can_import_is_said_and_the_engine_goes_on(multiproc_llm, monkeypatch):
    with pytest.raises(EngineError, match=r"worker 0 .*that it cannot make: No module named"):
        multiproc_llm.collective_rpc(function_of_no_file(monkeypatch))
    assert multiproc_llm.collective_rpc(rank_and_sum, args=(1,), kwargs={"b": 1}) == [(0, 2), (1, 2)]


def test_a_call_that_is_interrupted_while_it_is_sent_ends_the_workers_and_the_next_one_says_so(make_multiproc_llm):
    """A worker that does not read keeps the call where it is sent, for as long as it takes to be interrupted there."""
    llm = make_multiproc_llm()
    reader = llm.llm_engine.engine_core.executor._workers[0]

    def interrupt_a_send(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is Channel.send.__code__:
                raise KeyboardInterrupt
            frame = frame.f_back

    before = signal.signal(signal.SIGALRM, interrupt_a_send)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    os.kill(reader.pid, signal.SIGSTOP)
    try:
        with pytest.raises(KeyboardInterrupt):
            llm.collective_rpc(num_bytes_of, args=(torch.zeros(2_000_000),))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    with pytest.raises(
        EngineError, match=r"make a new one; what happened: num_bytes_of\(\) was broken off while it was"
    ):
        llm.collective_rpc(num_bytes_of, timeout=HANG_S, args=(torch.zeros(1),))


def test_a_worker_that_ends_between_two_calls_ends_the_engine_which_says_so(make_multiproc_llm, mark):
    llm = make_multiproc_llm()
    executor = llm.llm_engine.engine_core.executor
    told: list[Exception] = []
    executor.register_failure_callback(told.append)
    assert executor.failure is None

    os.kill(llm.receipts[2].pid, signal.SIGKILL)

    # The thread that finds out notes it first, and tells others then.
    assert wait_until(lambda: told)
    assert isinstance(executor.failure, WorkerError)
    assert executor.failure.rank == 1
    assert told == [executor.failure]
    with pytest.raises(EngineError, match=r"worker 1 \(PID \d+\) was killed by SIGKILL between two calls"):
        llm.generate([1, 2], greedy())
    assert wait_until(lambda: not marked_processes(mark))


@pytest.mark.slow
def test_a_second_engine_starts_after_the_first_has_failed(make_multiproc_llm):
    first = make_multiproc_llm()
    os.kill(first.receipts[1].pid, signal.SIGKILL)
    assert wait_until(lambda: first.llm_engine.engine_core.executor.failure)

    assert len(tokens(make_multiproc_llm())) == len(PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 2])
def test_workers_sleep_and_go_on_as_before(make_multiproc_llm, level):
    llm = make_multiproc_llm(enable_sleep_mode=True)
    expected = tokens(llm)

    llm.sleep(level)
    llm.wake_up()

    assert tokens(llm) == expected
