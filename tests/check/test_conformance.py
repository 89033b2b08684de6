"""What is compared of two runs, and what is told of runs that cannot be."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from support.distributions import config
from support.processes import wait_until

from vllm_ext.check.conformance import Comparison, compare
from vllm_ext.check.trial import ORIGIN, Completion, Wanted, run_trial, with_settings

SURE = (5.0, 5.0, 5.0)


@pytest.mark.parametrize(
    ("found", "wanted", "margins", "comparison"),
    [
        ((1, 2, 3), (1, 2, 3), SURE, Comparison(3, 3)),
        (
            (1, 9, 3),
            (1, 2, 3),
            SURE,
            Comparison(1, 3, "prompt 1 of 1 (7 tokens) has 9 at token 2, where the reference has 2"),
        ),
        # Either token is right there, and what comes after follows from it.
        ((1, 9, 8), (1, 2, 3), (5.0, 0.0009, 5.0), Comparison(1, 3)),
        ((1, 2, 9), (1, 2, 3), (5.0, 0.0009, 5.0), Comparison(1, 3)),
        ((9, 9, 9), (1, 2, 3), (0.0, 5.0, 5.0), Comparison(0, 3)),
        (
            (1, 2),
            (1, 2, 3),
            SURE,
            Comparison(2, 3, "prompt 1 of 1 (7 tokens) ends at token 3, where the reference has 3"),
        ),
    ],
)
def test_tokens_are_compared_until_one_is_undecided(found, wanted, margins, comparison):
    assert compare([Completion(7, found)], [Completion(7, wanted, margins)]) == comparison


def test_each_prompt_is_compared_for_itself():
    wanted = [Completion(1, (1, 2), (0.0, 5.0)), Completion(4, (3, 4), (5.0, 5.0))]

    assert compare([Completion(1, (8, 8)), Completion(4, (3, 4))], wanted) == Comparison(2, 4)
    text = "prompt 2 of 2 (4 tokens) has 5 at token 2, where the reference has 4"
    assert compare([Completion(1, (8, 8)), Completion(4, (3, 5))], wanted) == Comparison(1, 4, text)


def test_settings_that_a_run_needs_win_and_are_the_commands():
    before = config(engine__dtype="bfloat16", engine__seed=3)

    after = with_settings(before, {"engine.dtype": "float32", "plugins.stat_logger.enabled": ["a"]})

    assert (after.settings.engine.dtype, after.settings.engine.seed) == ("float32", 3)
    assert after.settings.plugins.stat_logger.enabled == ["a"]
    assert (after.origin("engine.dtype"), after.origin("engine.seed")) == (ORIGIN, before.origin("engine.seed"))
    assert before.settings.engine.dtype == "bfloat16"


LOGGER = """
import os, time
from vllm_ext import StatLoggerBase
class Logger(StatLoggerBase):
    def __init__(self, vllm_config, engine_index=0):
        open({file!r}, "w").write(str(os.getpid()))
        time.sleep(600)
    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0): ...
    def log_engine_initialized(self): ...
"""


@pytest.mark.slow
def test_an_interrupt_ends_the_run(plugins, tmp_path):
    file = tmp_path / "pid"
    code = LOGGER.format(file=str(file))
    plugins.distribution("acme", {"vllm.stat_logger_plugins": ["s = acme:Logger"]}, {"acme.py": code})

    def interrupt() -> None:
        if wait_until(lambda: file.exists() and file.read_text(), 120):
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_trial(config(), Wanted(("a",), 1), 300)

    assert not Path(f"/proc/{file.read_text()}").exists()


@pytest.mark.slow
def test_of_a_model_that_pools_no_tokens_are_compared():
    trial = run_trial(config(engine__runner="pooling"), Wanted(("a",), 1), 300)

    assert (trial.failure_is, trial.failure) == ("skipped", "engine.model pools, and tokens are what is compared")
