"""``logging`` and ``jsonl``: a line in the log, and lines in a file."""

from __future__ import annotations

import json
import logging

import pytest
from support.fake_engine import make_vllm_config
from support.stats import FakeClock

from vllm_ext import LLM, SamplingParams
from vllm_ext.contracts.stats import IterationStats, PrefixCacheStats, SchedulerStats
from vllm_ext.errors import ConfigError, Unavailable
from vllm_ext.stat_loggers.jsonl import JsonlStatLogger
from vllm_ext.stat_loggers.logging_logger import LoggingStatLogger


class TestLogging:
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def stat_logger(self, clock, caplog) -> LoggingStatLogger:
        caplog.set_level(logging.INFO, "vllm_ext")
        config = make_vllm_config(block_size=8)
        config.cache_config.num_gpu_blocks = 50
        return LoggingStatLogger(config, 3, clock=clock)

    def test_a_line_has_the_rates_since_the_last_one_and_how_things_stand(self, stat_logger, clock, caplog):
        for number in range(10):
            stats = SchedulerStats(4, number, kv_cache_usage=0.125, prefix_cache_stats=PrefixCacheStats(1, 40, 10))
            stat_logger.record(
                stats, IterationStats(num_prompt_tokens=20, num_generation_tokens=4, num_preempted_reqs=1)
            )
        clock.advance(5.0)
        stat_logger.log()

        assert caplog.messages == [
            "engine 3: prompts 40.0 tokens/s, generation 8.0 tokens/s, running 4 requests, waiting 9, preempted 10, "
            "KV cache in use 12.5 %, prefix cache hit rate 25.0 %"
        ]

    def test_each_line_counts_anew(self, stat_logger, clock, caplog):
        for num_tokens in (10, 30):
            stat_logger.record(None, IterationStats(num_generation_tokens=num_tokens))
            clock.advance(10.0)
            stat_logger.log()

        assert [message.split(", ")[1] for message in caplog.messages] == [
            "generation 1.0 tokens/s",
            "generation 3.0 tokens/s",
        ]

    def test_an_idle_engine_says_so_once(self, stat_logger, clock, caplog):
        stat_logger.record(SchedulerStats(), IterationStats(num_generation_tokens=1))
        for _ in range(4):
            clock.advance(10.0)
            stat_logger.log()

        assert [message.split(", ")[1] for message in caplog.messages] == [
            "generation 0.1 tokens/s",
            "generation 0.0 tokens/s",
        ]

    def test_what_runs_without_a_token_is_not_idle(self, stat_logger, clock, caplog):
        stat_logger.record(SchedulerStats(num_running_reqs=1), None)
        for _ in range(3):
            clock.advance(10.0)
            stat_logger.log()

        assert len(caplog.messages) == 3

    def test_the_size_of_the_cache_is_said_at_the_start(self, stat_logger, caplog):
        stat_logger.log_engine_initialized()

        assert caplog.messages == ["engine 3: KV cache of 50 blocks, 400 tokens"]

    def test_vllms_switch_turns_it_on(self, random_llama, caplog):
        caplog.set_level(logging.INFO, "vllm_ext.stat_loggers")
        with LLM(random_llama, platform="cpu", disable_log_stats=False) as llm:
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))

        assert any("generation" in message for message in caplog.messages)


class TestJsonl:
    def settings(self, path) -> dict:
        return {"plugins.stat_logger.enabled": ["jsonl"], "options": {"jsonl": {"path": str(path)}}}

    def test_every_step_of_an_engine_is_a_line(self, random_llama, tmp_path):
        path = tmp_path / "stats.jsonl"
        with LLM(random_llama, platform="cpu", overrides=self.settings(path)) as llm:
            outputs = llm.generate([[1, 2, 3], [4]], SamplingParams(max_tokens=4, ignore_eos=True))
        lines = [json.loads(line) for line in path.read_text().splitlines()]

        assert [line["iteration"]["num_generation_tokens"] for line in lines] == [2, 2, 2, 2, 0]
        assert [line["scheduler"]["num_running_reqs"] for line in lines] == [2, 2, 2, 0, 0]
        ended = [each for line in lines for each in line["iteration"]["finished_requests"]]
        assert [each["request_id"] for each in ended] == [output.request_id for output in outputs]
        assert {each["finish_reason"] for each in ended} == {"length"}
        assert {line["engine"] for line in lines} == {0}

    def test_a_file_that_is_there_is_added_to(self, random_llama, tmp_path):
        path = tmp_path / "stats.jsonl"
        path.write_text('{"mine": 1}\n')
        with LLM(random_llama, platform="cpu", overrides=self.settings(path)) as llm:
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1))
        first, second, *_ = (json.loads(line) for line in path.read_text().splitlines())

        assert first == {"mine": 1}
        assert second["iteration"]["num_prompt_tokens"] == 3

    def test_lines_are_there_after_a_log(self, tmp_path):
        path = tmp_path / "stats.jsonl"
        config = make_vllm_config()
        config.additional_config["jsonl"] = {"path": str(path)}
        stat_logger = JsonlStatLogger(config)
        stat_logger.record(None, IterationStats(num_generation_tokens=3))
        stat_logger.log()

        (line,) = (json.loads(line) for line in path.read_text().splitlines())
        assert (line["scheduler"], line["iteration"]["num_generation_tokens"]) == (None, 3)

    @pytest.mark.parametrize(
        "options, error, text",
        [
            ({}, Unavailable, "options.jsonl.path names no file; set it to the one that lines are to be appended to"),
            ({"path": 3}, ConfigError, "options.jsonl.path is 3; it takes the path of a file"),
            ({"path": ""}, ConfigError, "options.jsonl.path is ''; it takes the path of a file"),
            (
                {"path": "/nowhere/x"},
                ConfigError,
                "options.jsonl.path is '/nowhere/x', which cannot be written: No such file or directory",
            ),
        ],
    )
    def test_a_path_that_will_not_do_is_said(self, options, error, text):
        config = make_vllm_config()
        config.additional_config["jsonl"] = options

        with pytest.raises(error) as caught:
            JsonlStatLogger(config)
        assert str(caught.value) == text
