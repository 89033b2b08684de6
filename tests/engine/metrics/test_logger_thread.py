"""A stat logger that fails, blocks or is slow: what the steps see of it, and what the user is told."""

from __future__ import annotations

import logging
import sys
import threading
import time

import pytest
from support.async_engine import HANG_S, own_threads
from support.stats import Kept

from vllm_ext.config.schema import EngineSettings, Settings
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.metrics import logger_thread, manager
from vllm_ext.engine.metrics.logger_thread import MAX_FAILURES, MAX_WAITING

PROMPTS = [[1, 2, 3], [4, 5], [6]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=20)
EACH_10_MS = Settings(engine=EngineSettings(log_stats_interval_s=0.01))


class Blocked(Kept):
    """Enters ``record()`` and stays there until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.num_entered = 0
        self.may_go = threading.Event()

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0) -> None:
        self.num_entered += 1
        self.may_go.wait(HANG_S)
        super().record(scheduler_stats, iteration_stats)


class Failing(Kept):
    def __init__(self, error: BaseException, working: range = range(0)) -> None:
        super().__init__()
        self.error = error
        self.working = working
        """Numbers of the records that it takes."""

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0) -> None:
        super().record(scheduler_stats, iteration_stats)
        if len(self.records) not in self.working:
            raise self.error


@pytest.fixture
def make(make_llm, caplog):
    """Makes an LLM with these loggers; the warnings are those of the caplog."""
    caplog.set_level(logging.WARNING, "vllm_ext")
    return lambda *loggers, **options: make_llm(stat_logger_factories=[each.make for each in loggers], **options)


def wait_for(condition) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def steps_of(llm) -> int:
    return len(llm.dispatcher.worker.steps)


def expected_tokens(make_llm) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in make_llm().generate(PROMPTS, GREEDY)]


class TestBlocking:
    def test_a_run_is_complete_while_its_logger_is_in_its_first_record(self, make, make_llm, caplog):
        blocked = Blocked()
        llm = make(blocked)

        outputs = llm.generate(PROMPTS, GREEDY)
        wait_for(lambda: blocked.num_entered)

        assert [output.outputs[0].token_ids for output in outputs] == expected_tokens(make_llm)
        assert steps_of(llm) >= 20
        assert (blocked.num_entered, blocked.records) == (1, [])
        blocked.may_go.set()
        llm.close()
        assert len(blocked.records) == steps_of(llm), "once it goes on, it is told everything"
        assert caplog.messages == []

    def test_one_logger_does_not_hold_up_another(self, make):
        blocked, kept = Blocked(), Kept()
        llm = make(blocked, kept)
        llm.generate(PROMPTS, GREEDY)

        wait_for(lambda: len(kept.records) == steps_of(llm))
        assert blocked.records == []
        blocked.may_go.set()

    def test_one_that_is_too_far_behind_loses_records_and_it_is_said_once_and_how_many_at_the_end(
        self, make, caplog, monkeypatch
    ):
        monkeypatch.setattr(logger_thread, "MAX_WAITING", 5)
        blocked = Blocked()
        llm = make(blocked)
        llm.generate([[9]], SamplingParams(max_tokens=1))
        wait_for(lambda: blocked.num_entered)
        llm.generate(PROMPTS, GREEDY)
        num_lost = steps_of(llm) - 1 - 5
        name = "stat logger 'Kept.make' of the argument stat_loggers"

        assert caplog.messages == [
            f"{name} is behind by 5 records, so that the next ones are lost to it; how many, is said at the end"
        ]
        blocked.may_go.set()
        llm.close()
        assert caplog.messages[1:] == [
            f"{name} was too slow: {num_lost} of {steps_of(llm)} records are lost to it",
        ]
        assert len(blocked.records) == 6

    def test_the_end_waits_for_a_bounded_time_and_says_what_was_lost(self, make, caplog, monkeypatch):
        monkeypatch.setattr(manager, "_DRAIN_S", 0.05)
        monkeypatch.setattr(logger_thread, "_LAST_CALL_S", 0.05)
        blocked = Blocked()
        llm = make(blocked)
        llm.generate(PROMPTS, GREEDY)
        wait_for(lambda: blocked.num_entered)

        llm.close()

        assert [message.partition("stat_loggers ")[2] for message in caplog.messages] == [
            f"was too slow: {steps_of(llm) - 1} of {steps_of(llm)} records are lost to it",
            "does not return from a call, so that its thread is left behind",
        ]
        blocked.may_go.set()
        wait_for(lambda: own_threads() == [])

    def test_one_that_takes_a_while_for_each_record_leaves_no_thread(self, make, monkeypatch):
        monkeypatch.setattr(manager, "_DRAIN_S", 0.0)
        monkeypatch.setattr(logger_thread, "_LAST_CALL_S", HANG_S)

        class Slow(Kept):
            def record(self, *args, **kwargs) -> None:
                time.sleep(0.2)

        llm = make(Slow())
        llm.generate(PROMPTS, GREEDY)
        llm.close()

        assert own_threads() == []


class TestFailing:
    @pytest.mark.parametrize("error", [RuntimeError("no disk"), AssertionError("no disk"), SystemExit("no disk")])
    def test_the_output_is_complete_and_the_failure_is_said_once(self, make, make_llm, caplog, error):
        failing = Failing(error, working=range(2, 1000))
        llm = make(failing)
        outputs = llm.generate(PROMPTS, GREEDY)
        llm.close()

        assert [output.outputs[0].token_ids for output in outputs] == expected_tokens(make_llm)
        (record,) = caplog.records
        assert record.getMessage() == (
            "stat logger 'Kept.make' of the argument stat_loggers failed in record(): "
            f"{type(error).__name__}: no disk. Further failures are not reported"
        )
        assert record.exc_info[1] is error
        assert len(failing.records) == steps_of(llm), "it is told on"

    def test_after_repeated_failures_it_is_dropped_and_that_is_said(self, make, caplog):
        failing, kept = Failing(RuntimeError("no disk")), Kept()
        llm = make(failing, kept)
        llm.generate(PROMPTS, GREEDY)
        llm.close()

        assert len(failing.records) == MAX_FAILURES < steps_of(llm)
        assert len(caplog.messages) == 2
        assert caplog.messages[1].endswith(
            f"is dropped: record() has failed {MAX_FAILURES} times one after the other, at last with RuntimeError: "
            "no disk"
        )
        assert "log" not in failing.calls
        assert len(kept.records) == steps_of(llm), "others are told on"

    def test_a_record_that_works_in_between_keeps_it(self, make):
        failing = Failing(RuntimeError("no disk"), working=range(4, 1000, 4))
        llm = make(failing)
        llm.generate(PROMPTS, GREEDY)
        llm.close()

        assert len(failing.records) == steps_of(llm) > 2 * MAX_FAILURES

    def test_once_all_are_dropped_nothing_is_collected_any_more(self, make):
        llm = make(Failing(RuntimeError("no disk")))
        llm.generate(PROMPTS, GREEDY)
        wait_for(lambda: own_threads() == [])

        llm.generate(PROMPTS, GREEDY)

        assert not llm.llm_engine._stats.is_active
        assert llm.llm_engine._stats._times.ids() == []

    @pytest.mark.parametrize("method", ["log_engine_initialized", "log"])
    def test_every_method_may_fail(self, make, caplog, method):
        kept = Kept()

        def fail() -> None:
            raise RuntimeError("no disk")

        setattr(kept, method, fail)
        llm = make(kept)
        llm.generate(PROMPTS, GREEDY)
        llm.close()

        assert len(kept.records) == steps_of(llm)
        (message,) = caplog.messages
        assert f"failed in {method}(): RuntimeError: no disk" in message


class TestThread:
    def test_all_methods_are_called_in_one_thread_that_is_not_the_engines(self, make):
        kept = Kept()
        llm = make(kept, settings=EACH_10_MS)
        llm.generate(PROMPTS, GREEDY)
        llm.close()

        assert set(kept.calls) == {"log_engine_initialized", "record", "log"}
        assert kept.threads == {"vllm_ext-stat-logger"}

    def test_the_engines_readiness_comes_first_and_log_comes_last(self, make):
        kept = Kept()
        llm = make(kept)
        llm.generate(PROMPTS, GREEDY)
        llm.close()

        assert kept.calls == ["log_engine_initialized", *["record"] * steps_of(llm), "log"]

    def test_log_is_called_again_and_again_also_while_nothing_happens(self, make):
        kept = Kept()
        make(kept, settings=EACH_10_MS)

        wait_for(lambda: kept.calls.count("log") > 3)

    def test_it_is_made_when_the_engine_is_ready_with_its_configuration(self, make):
        kept = Kept()
        llm = make(kept)

        assert kept.arguments == (llm.dispatcher.vllm_config, 0)
        assert llm.dispatcher.vllm_config.cache_config.num_gpu_blocks > 0

    def test_no_thread_is_left_after_the_end_nor_where_the_engine_was_forgotten(self, make, engines):
        make(Kept(), Kept()).close()
        assert own_threads() == []

        make(Kept())
        assert len(own_threads()) == 1
        engines.clear()
        wait_for(lambda: own_threads() == [])

    def test_as_many_records_may_wait_as_a_burst_of_steps_makes(self):
        assert MAX_WAITING >= 1000

    def test_a_program_that_forgot_to_close_its_engine_still_ends_and_its_logger_has_everything(self, tmp_path):
        import subprocess

        path = tmp_path / "lines.jsonl"
        program = (
            "from vllm_ext import LLM, SamplingParams\n"
            "llm = LLM(overrides={'plugins.stat_logger.enabled': ['jsonl'], 'options': {'jsonl': {'path': "
            f"{str(path)!r}}}}}}})\n"
            "llm.generate('She had', SamplingParams(max_tokens=5))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)

        assert (done.returncode, done.stderr) == (0, "")
        assert len(path.read_text().splitlines()) >= 5
