"""The example stat loggers, installed beside an engine that knows nothing of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest
from support.async_engine import own_threads, tokens_of

from vllm_ext import LLM, AsyncLLM, SamplingParams
from vllm_ext.config import load_config
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.trail import dispatch_trail

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = [[5, 6, 7], [8] * 20, [9]]
ENGINE = {"dtype": "float32", "platform": "cpu"}


@pytest.fixture(autouse=True)
def project(plugins):
    plugins.project("vllm_ext_dummy_stats")
    return plugins


def totals():
    from vllm_ext_dummy_stats.loggers import Totals

    return Totals.latest


@pytest.fixture
def outputs(random_llama):
    """Of an engine that has ended."""
    with LLM(random_llama, **ENGINE) as llm:
        return [*llm.generate(PROMPTS, GREEDY), *llm.generate([PROMPTS[1]], GREEDY)]


def test_it_counts_what_the_outputs_say(outputs):
    assert totals().counts == {
        "prompt tokens": sum(len(output.prompt_token_ids) for output in outputs),
        "generated tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
        "cached tokens": sum(output.num_cached_tokens for output in outputs),
        "first tokens": len(outputs),
    }
    assert totals().counts["cached tokens"] == 16
    assert totals().reasons == {"length": 4}
    assert totals().most_running == 3


def test_it_is_told_first_that_the_engine_is_ready(outputs):
    assert totals().calls.index("log_engine_initialized") == 0
    assert totals().calls.count("log_engine_initialized") == 1


def test_at_the_end_it_writes_what_it_has(outputs):
    assert totals().calls[-1] == "log"
    assert own_threads() == []


def test_it_knows_the_engine(outputs, random_llama):
    assert (totals().model, totals().engine_index) == (str(random_llama), 0)


def test_one_for_all_engines_is_told_the_numbers_of_the_engines(random_llama, tmp_path):
    path = tmp_path / "report.json"
    with LLM(random_llama, overrides={"options": {"report": {"path": str(path)}}}, **ENGINE) as llm:
        llm.generate(PROMPTS, GREEDY)

    assert json.loads(path.read_text()) == {"ready": True, "tokens": {"0": 18}}


@pytest.mark.parametrize("core_process", [False, True])
def test_it_is_told_by_an_engine_for_many_tasks(random_llama, core_process):
    async def main() -> list[list[int]]:
        async with AsyncLLM(random_llama, core_process=core_process, kv_cache_memory=1 << 20, **ENGINE) as engine:
            return await asyncio.gather(*(tokens_of(engine, prompt, GREEDY) for prompt in PROMPTS))

    results = asyncio.run(main())

    assert totals().counts["generated tokens"] == sum(map(len, results)) == 18
    assert totals().reasons == {"length": 3}


def test_what_is_disabled_is_not_imported(random_llama):
    overrides = {"plugins.stat_logger.disabled": ["totals", "report"]}
    with LLM(random_llama, overrides=overrides, **ENGINE) as llm:
        llm.generate(PROMPTS, GREEDY)
        assert not llm.llm_engine._stats.is_active

    assert "vllm_ext_dummy_stats.loggers" not in sys.modules


def test_explain_has_them_with_what_became_of_each(random_llama):
    steps = dispatch_trail(bootstrap(load_config()).dispatcher())

    found = {step.candidate: step.state for step in steps if step.slot == "stat_loggers"}
    assert found == {
        "'report' of vllm-ext-dummy-stats 0.1": "active",
        "'totals' of vllm-ext-dummy-stats 0.1": "active",
        "'jsonl' of vllm-ext 0.1.0": "available",
        "'logging' of vllm-ext 0.1.0": "available",
        "'prometheus' of vllm-ext 0.1.0": "available",
    }


def test_it_works_from_the_command_line(project, tmp_path):
    path = tmp_path / "report.json"
    command = ["run", "She had", "--max-tokens", "5", "--seed", "1", "--set", f"options.report.path={path}"]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_ext", *command],
        env={**os.environ, "PYTHONPATH": str(project.site)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(path.read_text()) == {"ready": True, "tokens": {"0": 5}}
