"""Faults in worker processes: none is waited for in vain, and each ends in an error that names rank and cause."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.async_engine import collect, greedy
from support.processes import marked_processes, wait_until

from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.errors import EngineError, VllmExtError, WorkerError

BOUND_S = 200
"""Several times what the start of two engines takes on a machine that is busy."""


@pytest.fixture(autouse=True)
def bound(mark: str) -> Iterator[None]:
    """A test that takes longer fails, with the stack of every thread."""

    def out_of_time(*_: object) -> None:
        faulthandler.dump_traceback()
        raise TimeoutError(f"the test has taken {BOUND_S} s")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(BOUND_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def faulty(name: str) -> dict[str, object]:
    return {"overrides": {"worker.cls": f"support.faulty_workers.{name}"}}


@pytest.mark.slow
def test_a_worker_killed_during_a_step_is_named_and_a_second_engine_starts(make_multiproc_llm):
    llm = make_multiproc_llm(**faulty("KilledInAStep"))

    with pytest.raises(EngineError, match=r"worker 1 .*was killed by SIGKILL in execute_model"):
        llm.generate([1, 2], greedy())

    assert make_multiproc_llm().generate([1, 2], greedy(2))


@pytest.mark.parametrize(
    ("name", "ranks"), [("OneFailsToLoad", "1"), pytest.param("AllFailToLoad", "[01]", marks=pytest.mark.slow)]
)
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


@pytest.mark.slow
def test_a_program_that_ends_without_a_shutdown_ends_its_workers(random_llama):
    program = PROGRAM.replace("while True:", "for _ in range(1):").replace("250", "2")

    done = subprocess.run(
        [sys.executable, "-c", program, str(random_llama), "sync"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "started\nstep\nstep\n")


@pytest.mark.slow
def test_where_all_workers_fail_in_a_step_the_engine_goes_on(make_multiproc_llm):
    llm = make_multiproc_llm(**faulty("AllFailInTheirFirstStep"))

    with pytest.raises(EngineError, match=r"worker 0 .*no first step"):
        llm.generate([1, 2], greedy())
    assert len(llm.generate([1, 2], greedy(3))[0].outputs[0].token_ids) == 3


@pytest.mark.slow
def test_a_model_that_gives_logits_on_one_rank_only_is_named(make_multiproc_llm, plugins):
    """The other rank would go on without the token."""
    code = (
        "import os\nfrom vllm_ext import ModelRegistry\nfrom vllm_ext.models.llama import LlamaForCausalLM\n"
        "class Model(LlamaForCausalLM):\n"
        "    def compute_logits(self, hidden_states):\n"
        "        logits = super().compute_logits(hidden_states)\n"
        "        return logits if os.environ['LOCAL_RANK'] == '0' else None\n"
        "def run(): ModelRegistry.register_model('LlamaForCausalLM', Model)\n"
    )
    plugins.distribution("acme", {"vllm.general_plugins": ["a = acme:run"]}, {"acme.py": code})

    with pytest.raises(VllmExtError, match=r"worker 1 .*compute_logits\(\) of model acme.Model returned None"):
        make_multiproc_llm()


@pytest.mark.slow
def test_a_panic_in_a_step_is_the_workers_failure_and_the_engine_goes_on(make_multiproc_llm):
    llm = make_multiproc_llm(tensor_parallel_size=1, **faulty("PanicsInItsFirstStep"))

    with pytest.raises(EngineError, match=r"worker 0 \(PID \d+\) failed in .*: BaseException: no first step"):
        llm.generate([1, 2], greedy(3))
    assert len(llm.generate([1, 2], greedy(3))[0].outputs[0].token_ids) == 3


def test_what_is_no_token_id_is_refused_and_the_engine_goes_on(make_multiproc_llm):
    llm = make_multiproc_llm(tensor_parallel_size=1, **faulty("FloatsInItsFirstStep"))

    with pytest.raises(EngineError, match=r"faulty_workers.FloatsInItsFirstStep returned the token \d+\.0 for request"):
        llm.generate([1, 2], greedy(3))
    assert len(llm.generate([1, 2], greedy(3))[0].outputs[0].token_ids) == 3


@pytest.mark.slow
def test_memory_that_the_device_has_not_is_refused_with_what_it_has(make_multiproc_llm):
    with pytest.raises(EngineError, match=r"worker \d .*engine.kv_cache_memory asks for \d+ bytes; the device has"):
        make_multiproc_llm(kv_cache_memory=1 << 55)


@pytest.mark.slow
def test_memory_that_the_system_refuses_one_worker_is_an_error_with_its_rank(make_multiproc_llm):
    with pytest.raises(EngineError, match=r"worker 1 \(PID \d+\) failed in initialize_from_config\(\).*alloc"):
        make_multiproc_llm(**faulty("OneHasNoMemory"), kv_cache_memory=1 << 28)


def test_a_rendezvous_port_in_use_is_named_with_the_setting(make_multiproc_llm):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(EngineError, match=rf"port {port} .* is in use; set engine.master_port to a free one"):
            make_multiproc_llm(master_port=port)


@pytest.mark.slow
def test_a_rank_that_never_joins_is_named_with_the_time_it_had(make_multiproc_llm):
    # The other one has to come within that time.
    with pytest.raises(EngineError, match=r"^worker 1 \(PID \d+\) did not answer.*engine.join_timeout_s, 20 s"):
        make_multiproc_llm(**faulty("OneNeverJoins"), join_timeout_s=20)


@pytest.mark.parametrize(
    ("fault", "settings", "message"),
    [
        pytest.param(
            "time.sleep(3600)",
            {"join_timeout_s": 8},
            r"^worker 1 \(PID \d+\) did not answer in time to apply the engine's plan",
            id="hangs",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "os._exit(7)",
            {},
            r"worker 1 \(PID \d+\) of 2 ended with exit code 7 to apply the engine's plan",
            id="ends the process",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "raise OSError('no such device')",
            {},
            r"worker 1 would not run what the engine runs[^$]*OSError: no such device",
            id="raises",
        ),
    ],
)
def test_a_plugin_with_a_fault_in_one_worker_is_told_by_rank(make_multiproc_llm, plugins, fault, settings, message):
    code = f"import os, time\ndef run():\n    if os.environ.get('LOCAL_RANK') == '1': {fault}\n"
    plugins.distribution("acme", {"vllm.general_plugins": ["a = acme:run"]}, {"acme.py": code})

    with pytest.raises(VllmExtError, match=message):
        make_multiproc_llm(**settings)


def test_a_worker_killed_in_a_step_of_an_async_engine_ends_its_requests_with_the_reason(random_llama):
    engine = AsyncLLM(
        random_llama, platform="cpu", executor="multiproc", tensor_parallel_size=2, kv_cache_memory=1 << 20,
        **faulty("KilledInAStep"),
    )  # fmt: skip
    try:
        with pytest.raises(EngineError, match=r"worker 1 .*was killed by SIGKILL"):
            asyncio.run(collect(engine, [1, 2], greedy()))
    finally:
        engine.shutdown()


PROGRAM = """
import asyncio, sys
from vllm_ext import LLM, AsyncLLM, SamplingParams
settings = dict(dtype="float32", platform="cpu", executor="multiproc", tensor_parallel_size=2, kv_cache_memory=1 << 20)
endless = SamplingParams(max_tokens=250, ignore_eos=True)
async def serve():
    engine = AsyncLLM(sys.argv[1], core_process=True, **settings)
    while True:
        async for _ in engine.generate([1, 2], endless):
            print("step", flush=True)
if __name__ == "__main__":
    print("started", flush=True)
    if sys.argv[2] == "async":
        asyncio.run(serve())
    llm = LLM(sys.argv[1], **settings)
    while True:
        for _ in llm.stream([1, 2], endless):
            print("step", flush=True)
"""


@pytest.mark.parametrize(
    ("engine", "when"),
    [
        ("sync", "step"),
        pytest.param("sync", "started", marks=pytest.mark.slow),
        pytest.param("async", "step", marks=pytest.mark.slow),
        pytest.param("async", "started", marks=pytest.mark.slow),
    ],
)
def test_no_process_outlives_a_parent_that_is_killed(random_llama, mark, engine, when):
    """The fixture looks for what is left."""
    command = [sys.executable, "-c", PROGRAM, str(random_llama), engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        while program.stdout.readline().strip() != when:
            assert program.poll() is None
        if when == "started":
            assert wait_until(lambda: len(marked_processes(mark)) > 1)
        else:
            assert len(marked_processes(mark)) >= 3
        program.kill()


@pytest.mark.slow
def test_a_full_shared_memory_does_not_matter_since_none_is_used(random_llama):
    program = PROGRAM.replace("while True:", "for _ in range(1):").replace("max_tokens=250", "max_tokens=20")
    script = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full; exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*unshare, script, "sh", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace of one's own is to be had here")
    command = [*unshare, script, "sh", sys.executable, "-c", program, str(random_llama), "sync"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step") == 20
