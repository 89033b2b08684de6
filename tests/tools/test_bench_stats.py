"""tools/bench_stats.py: what it measures and prints; the figures themselves are never tested."""

from __future__ import annotations

import json

from support.async_engine import own_threads
from support.tools import load_tool

tool = load_tool("bench_stats")


def test_each_batch_has_a_step_without_a_logger_and_ratios_to_it(capsys):
    assert tool.main(["--batch", "1", "2", "--tokens", "6", "--repeats", "2"]) == 0

    measured = json.loads(capsys.readouterr().out)
    assert list(measured) == ["1", "2"]
    for row in measured.values():
        assert list(row) == ["none_us", "nothing", "in-tree"]
        assert all(value > 0 for value in row.values())


def test_the_engines_are_told_what_their_names_say_and_are_ended(tmp_path):
    engines = tool.make_engines(2, str(tmp_path / "stats.jsonl"))

    assert {name: len(llm.llm_engine._stats._threads) for name, llm in engines.items()} == {
        "none": 0,
        "nothing": 1,
        "in-tree": 3,
    }
    for llm in engines.values():
        llm.close()
    assert own_threads() == []


def test_the_steps_are_those_of_the_whole_batch(tmp_path):
    engines = tool.make_engines(3, str(tmp_path / "stats.jsonl"))
    tool.step_seconds(engines["in-tree"], 3, 5)
    for llm in engines.values():
        llm.close()

    lines = [json.loads(line)["iteration"] for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line["num_generation_tokens"] for line in lines if line["num_generation_tokens"]] == [3] * 5
