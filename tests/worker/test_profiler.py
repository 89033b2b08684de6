"""Traces of a worker: where they are written, what is in them, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from pathlib import Path

import pytest

from vllm_ext import LLM, AsyncLLM, SamplingParams
from vllm_ext.errors import ConfigError, EngineError
from vllm_ext.worker.profiler import TorchProfiler

GREEDY = SamplingParams(temperature=0, max_tokens=3)


def start(model: Path, folder: Path | None, cls: type = LLM):
    overrides = {} if folder is None else {"profiler.torch_profiler_dir": str(folder)}
    return cls(model, platform="cpu", overrides=overrides)


def events(trace: Path) -> set[str]:
    return {event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]}


def test_a_trace_has_what_was_computed_between_start_and_stop(random_llama, tmp_path):
    with start(random_llama, tmp_path / "new" / "traces") as llm:
        llm.start_profile("mine")
        llm.generate([[1, 2, 3]], GREEDY)
        llm.stop_profile()
        llm.generate([[1, 2, 3]], GREEDY)

    (trace,) = (tmp_path / "new" / "traces").iterdir()
    assert trace.name.startswith("mine_rank0_")
    assert trace.name.endswith(".pt.trace.json")
    assert {"aten::empty", "aten::index_select"} & events(trace)


def test_every_profile_has_a_file_of_its_own(random_llama, tmp_path):
    with start(random_llama, tmp_path) as llm:
        for _ in range(2):
            llm.start_profile()
            llm.stop_profile()

    assert len(list(tmp_path.glob("rank0_*.pt.trace.json"))) == 2


def test_a_trace_that_cannot_be_written_is_an_error_also_at_the_end(random_llama, tmp_path):
    folder = tmp_path / "traces"
    llm = start(random_llama, folder)
    model = weakref.ref(llm.apply_model(lambda model: model)[0])

    for end in (llm.stop_profile, llm.close):
        llm.start_profile()
        folder.rmdir()
        with pytest.raises(EngineError, match=r"could not write the trace '.*traces/rank0_\d+"):
            end()
    gc.collect()

    assert model() is None


def test_an_async_engine_records_the_steps_of_its_thread(random_llama, tmp_path):
    async def main() -> None:
        async with start(random_llama, tmp_path, AsyncLLM) as engine:
            await engine.start_profile()
            async for _ in engine.generate([1, 2, 3], GREEDY):
                pass
            await engine.stop_profile()
            with pytest.raises(EngineError, match="no profile is being recorded"):
                await engine.stop_profile()

    asyncio.run(main())

    (trace,) = tmp_path.iterdir()
    assert {"aten::empty", "aten::index_select"} & events(trace)


def test_what_was_begun_is_written_when_the_engine_ends(random_llama, tmp_path):
    with start(random_llama, tmp_path) as llm:
        llm.start_profile()

    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_folder_the_setting_is_named(random_llama):
    with start(random_llama, None) as llm, pytest.raises(ConfigError, match="profiler.torch_profiler_dir is not set"):
        llm.start_profile()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"profiler.torch_profiler_dir '.*file/traces' cannot be made: "):
        TorchProfiler(str(tmp_path / "file" / "traces"), 0).start()


def test_a_second_start_and_a_stop_without_one_are_errors(tmp_path):
    profiler = TorchProfiler(str(tmp_path), 0)

    with pytest.raises(EngineError, match=r"no profile is being recorded; start_profile\(\) begins one"):
        profiler.stop()
    profiler.start()
    with pytest.raises(EngineError, match=r"is being recorded already; stop_profile\(\) ends it"):
        profiler.start()
    profiler.stop()


@pytest.mark.parametrize("prefix", ["../out", "a/b", "..", "/abs", 5])
def test_a_prefix_cannot_lead_out_of_the_folder(tmp_path, prefix):
    with pytest.raises(EngineError, match="takes the beginning of a file's name"):
        TorchProfiler(str(tmp_path), 0).start(prefix)
