"""tools/bench_growth.py: what it measures, prints and draws; the figures themselves are never tested."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from support.tools import load_tool

tool = load_tool("bench_growth")

RESULTS = {
    "batch": [{"batch": 1, "tokens_per_s": 10.0}, {"batch": 2, "tokens_per_s": 18.0}],
    "context": [
        {"batch": batch, "context": context, "tokens_per_s": 1000 * batch / context}
        for batch in (1, 8)
        for context in (128, 256)
    ],
    "memory": [{"requests": 1, "peak_mb": 100.0}, {"requests": 2, "peak_mb": 110.0}],
}


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_all_three_are_measured_beyond_the_models_own_positions(random_llama, capsys):
    sizes = ["--batch", "1", "3", "--context", "32", "300", "--context-batch", "1", "2", "--memory-context", "40"]
    assert tool.main([str(random_llama), *sizes, "--max-tokens", "4", "--threads", "1", "--repeats", "1"]) == 0

    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert [row["batch"] for row in results["batch"]] == [1, 3]
    assert [(row["batch"], row["context"]) for row in results["context"]] == [(1, 32), (1, 300), (2, 32), (2, 300)]
    assert all(row["tokens_per_s"] > 0 for row in results["batch"] + results["context"])
    assert [row["requests"] for row in results["memory"]] == [1, 3]
    assert all(row["peak_mb"] >= row["grown_mb"] > 0 for row in results["memory"])
    assert "batch 2, context 300: " in printed.err


def test_a_model_with_enough_positions_is_used_as_it_is(random_llama, tmp_path):
    assert tool.with_positions(random_llama, 256, tmp_path) == random_llama

    longer = tool.with_positions(random_llama, 257, tmp_path)
    assert json.loads((longer / "config.json").read_text())["max_position_embeddings"] == 257
    assert json.loads((random_llama / "config.json").read_text())["max_position_embeddings"] == 256


def test_the_picture_is_a_small_png(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra bench is not installed")
    file = tmp_path / "growth.png"

    tool.draw(RESULTS, file)

    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size < 100_000


def test_without_matplotlib_the_extra_is_named(random_llama, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(SystemExit) as caught:
        tool.main([str(random_llama), "--plot", str(tmp_path / "x.png")])

    assert caught.value.code == 2
    assert "--plot needs matplotlib: pip install 'vllm-ext[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--context", "64"], ["--max-tokens", "1"]])
def test_contexts_without_room_for_a_prompt_are_refused(random_llama, options, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(random_llama), *options])

    assert "--max-tokens takes at least 2, and less than each --context" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_fails_is_reported_with_its_last_words(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)the process with 1 requests ended with code 1:.*no-such-model"):
        tool.over_requests(tmp_path / "no-such-model", [1], 8, 100)
