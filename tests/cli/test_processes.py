"""Commands whose engine has processes of its own: options, what is shown of them, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.processes import marked_processes, nothing_left

TWO_WORKERS = ["--executor", "multiproc", "--tensor-parallel-size", "2"]
SET_MULTIPROC = ["--set", "engine.executor=multiproc"]


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with nothing_left(monkeypatch) as made:
        yield made


@pytest.mark.slow
def test_two_workers_print_the_text_of_one(vllm_ext):
    arguments = ["run", "My dear", "--temperature", "0", "--max-tokens", "8", "--dtype", "float32"]
    alone = vllm_ext(*arguments)

    assert vllm_ext(*arguments, *TWO_WORKERS) == alone
    assert alone.code == 0


def test_an_executor_that_does_not_exist_is_wrong_input(vllm_ext):
    done = vllm_ext("run", "--executor", "multiprok")

    assert done.code == 2
    assert "--executor" in done.err
    assert "did you mean 'multiproc'?" in done.err


def test_a_size_that_is_no_number_of_workers_is_wrong_input(vllm_ext):
    done = vllm_ext("run", "--tensor-parallel-size", "0")

    assert done.code == 2
    assert "--tensor-parallel-size" in done.err


def test_an_interface_that_the_machine_does_not_have_is_refused_with_those_it_has(vllm_ext, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "absent0")

    code, out, err = vllm_ext("run", "--max-tokens", "1", *TWO_WORKERS)

    assert (code, out) == (2, "")
    assert "environment (GLOO_SOCKET_IFNAME): no network interface 'absent0'; interfaces: " in err
    assert socket.if_nameindex()[0][1] in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("given", ["", next(name for _, name in socket.if_nameindex() if name.startswith("lo"))])
def test_an_interface_that_it_has_is_used_and_an_empty_name_is_none(vllm_ext, monkeypatch, given):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)

    assert vllm_ext("run", "--max-tokens", "1", *TWO_WORKERS).code == 0


@pytest.mark.slow
def test_explain_lists_every_process_with_its_receipt(vllm_ext):
    size = ["--set", "engine.tensor_parallel_size=2"]
    done = vllm_ext("explain", "--run", "processes", "-f", "json", "--platform", "cpu", *SET_MULTIPROC, *size)

    assert (done.code, done.err) == (0, "")
    front_end, *workers = done.out
    assert (front_end["process"], front_end["rank"], front_end["pid"]) == ("front end", "", os.getpid())
    assert [(row["process"], row["rank"]) for row in workers] == [("worker", 0), ("worker", 1)]
    assert len({row["pid"] for row in done.out}) == 3
    assert {(row["plan"], row["plugins"]) for row in done.out} == {
        (front_end["plan"], "vllm_ext.platforms: vllm-ext:cpu")
    }
    assert all(row["seconds"] >= 0 for row in done.out)


def test_a_core_process_is_one_of_them(vllm_ext):
    core = ["--set", "engine.core_process=true"]
    done = vllm_ext("explain", "--run", "processes", "-f", "json", "--platform", "cpu", *core)

    assert [row["process"] for row in done.out] == ["front end", "engine core"]


def test_where_nothing_could_be_counted_nothing_is_called_unused(vllm_ext):
    done = vllm_ext("explain", "--run", "-f", "json", "--platform", "cpu", *SET_MULTIPROC)

    assert "where nothing is counted" in done.err
    assert {row["at_start"] for row in done.out} == {""}
    assert "unused" not in {row["state"] for row in done.out}
    assert [row["candidate"] for row in done.out if row["slot"] == "processes"] == ["front end", "worker 0"]


def test_processes_without_a_run_are_wrong_usage(vllm_ext):
    done = vllm_ext("explain", "processes")

    assert done.code == 2
    assert "explain --run processes" in done.err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, id="SIGINT"),
        pytest.param(signal.SIGHUP, 129, id="SIGHUP", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_workers_in_order_and_is_the_exit_code(number, code, mark):
    # One prompt after the other, so that it is at work for long, whenever the signal comes.
    prompts = [*["It was"] * 100, "--max-tokens", "100000", "--set", "engine.max_num_seqs=1"]
    command = [sys.executable, "-m", "vllm_ext", "run", *prompts, "--set", "engine.seed=1", *TWO_WORKERS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.read(40)
    assert len(marked_processes(mark)) == 3

    process.send_signal(number)
    _, errors = process.communicate(timeout=120)

    assert process.returncode == code
    assert "Traceback" not in errors
    assert marked_processes(mark) == {}, "the command waits for its workers"


@pytest.mark.slow
def test_the_traceback_of_code_that_fails_in_a_worker_is_shown(tmp_path):
    worker = (
        "from vllm_ext.worker.worker import Worker\n"
        "class Broken(Worker):\n"
        "    def load_model(self, **kwargs):\n"
        "        raise ZeroDivisionError('in the loader')\n"
    )
    (tmp_path / "broken_worker.py").write_text(worker)
    command = [sys.executable, "-m", "vllm_ext", "run", "--executor", "multiproc"]
    command += ["--set", "worker.cls=broken_worker.Broken"]

    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "worker 0 (PID" in done.stderr
    assert "failed in load_model(): ZeroDivisionError: in the loader" in done.stderr
    assert 'broken_worker.py", line 4, in load_model' in done.stderr
