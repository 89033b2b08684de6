"""An engine, and a forked copy of its process. Each case is a program of its own: pytest has threads of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORKS = """
import asyncio, logging, os, signal, sys, threading, time, torch
from vllm_ext import AsyncLLM, LLM, SamplingParams
logging.basicConfig(format="%(message)s")
kind, model = sys.argv[1:]
settings = dict(dtype="float32", platform="cpu", kv_cache_memory=1 << 20)
params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
torch.set_num_threads(2)
async def last(engine):
    async for output in engine.generate([5, 6, 7], params):
        found = output
    return found
def answer(engine):
    output = engine.generate([5, 6, 7], params)[0] if isinstance(engine, LLM) else asyncio.run(last(engine))
    return output.outputs[0].token_ids
engine = AsyncLLM(model, **settings) if kind == "async" else LLM(model, **settings)
if kind == "new":
    before = answer(engine)
    # More than any model here, so that torch surely shares it among its threads.
    torch.ones(1 << 22).exp()
if kind == "stepping":
    stepping = threading.Event()
    def step(*_):
        stepping.set()
        time.sleep(3600)
    engine.llm_engine.step = step
    threading.Thread(target=answer, args=[engine], daemon=True).start()
    stepping.wait()
if os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
# What waits for ever, ends here.
signal.alarm(200)
try:
    if kind == "new":
        engine = LLM(model, **settings)
        torch.ones(1 << 22).exp()
        print(torch.get_num_threads(), answer(engine) == before, flush=True)
    else:
        print(answer(engine), flush=True)
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
os._exit(0)
"""


def fork(kind: str, model: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FORKS, kind, str(model)], capture_output=True, text=True, timeout=300, check=True
    )


@pytest.mark.parametrize("kind", ["sync", pytest.param("async", marks=pytest.mark.slow), "stepping"])
def test_an_engine_is_refused_in_a_copy_of_its_process(random_llama, kind):
    said = fork(kind, random_llama).stdout

    assert said.startswith("EngineError: this engine belongs to process ")
    assert said.endswith("is a copy of that; make an engine of its own in each process\n")


def test_a_copy_whose_parent_has_computed_makes_an_engine_with_one_thread_and_says_so(random_llama):
    done = fork("new", random_llama)

    assert done.stdout == "1 True\n"
    assert "the engine computes with 1 thread instead of 2. For all of them, start processes by 'spawn'" in done.stderr
