"""tools/bench_engine.py: what it measures and prints; the figures themselves are never tested."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from support.tools import load_tool, quotient

tool = load_tool("bench_engine")


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(capsys, *options: object) -> tuple[dict, str]:
    """The printed results, and the progress."""
    assert tool.main([str(option) for option in options]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


@pytest.mark.slow
def test_both_engines_generate_the_same_and_are_compared(random_llama, capsys):
    results, progress = run(capsys, random_llama, "--batch", 1, 3, "--max-tokens", 4, "--threads", 1, "--repeats", 1)

    assert [entry["batch"] for entry in results["throughput"]] == [1, 3]
    for entry in results["throughput"]:
        assert entry["same_tokens"] >= 0.95
        assert entry["ratio"] == quotient(entry["ours_tokens_per_s"], entry["transformers_tokens_per_s"], digits=2)
        # The tiny model's step is mostly not arithmetic, so its shares say nothing; but there are some.
        assert entry["share_of_decode_roofline"] > 0
        assert entry["share_of_roofline"] > 0
    first_token = results["first_token"]
    assert first_token["ratio"] == quotient(first_token["ours_s"], first_token["transformers_s"], digits=3)
    assert "batch 3, repeat 1/1: transformers" in progress
    assert "first token, repeat 1/1: ours" in progress


@pytest.mark.slow
def test_the_machine_is_described(random_llama, capsys):
    results, _ = run(
        capsys, random_llama, "--batch", 1, "--max-tokens", 1, "--threads", 1, "--repeats", 1, "--baseline", "none"
    )

    machine = results["machine"]
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == 1
    assert machine["cores"] >= 1
    assert machine["cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "has_roofline"), [("bfloat16", True), ("float16", False)])
def test_the_roofline_is_that_of_the_dtype_where_products_are_fast_in_it(random_llama, capsys, dtype, has_roofline):
    results, _ = run(
        capsys,
        random_llama,
        "--batch",
        1,
        "--max-tokens",
        2,
        "--repeats",
        1,
        "--baseline",
        "none",
        "--dtype",
        dtype,
    )

    assert results["dtype"] == dtype
    assert ("share_of_roofline" in results["throughput"][0]) == has_roofline


def test_without_transformers_the_way_out_is_named(random_llama, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(SystemExit) as caught:
        tool.main([str(random_llama)])

    assert caught.value.code == 2
    assert "pip install transformers, or give --baseline none" in capsys.readouterr().err


def test_an_engine_that_makes_another_number_of_tokens_is_not_timed():
    with pytest.raises(RuntimeError, match=r"slow made \[3\] tokens per prompt instead of 4"):
        tool.time_generation("slow", lambda prompts, count: [[1] * 3 for _ in prompts], [[1, 2], [3]], 4)


def test_repeats_take_turns_and_the_middle_one_counts():
    order = []

    def engine(name):
        def generate(prompts, count):
            order.append((name, len(prompts), count))
            return [[0] * count for _ in prompts]

        return generate

    result = tool.compare_throughput({"ours": engine("a"), "transformers": engine("b")}, 2, 50, 5, 3)

    assert order[2:] == [("a", 2, 5), ("b", 2, 5)] * 3, "after one short warm-up each"
    assert result["same_tokens"] == 1.0
    timings = [tool.Timing(rate, []) for rate in (100.0, 30.0, 40.0)]
    assert tool.ratio_of_medians(timings, [tool.Timing(20.0, [])]) == 2.0


def test_prompts_are_random_but_the_same_every_time():
    prompts = tool.random_prompts(30, 500, seed=3)

    assert prompts == tool.random_prompts(30, 500, seed=3)
    assert prompts != tool.random_prompts(30, 500, seed=4)
    assert all(20 <= len(prompt) <= 100 and max(prompt) < 500 for prompt in prompts)
    assert len({len(prompt) for prompt in prompts}) > 5


def test_a_process_that_fails_is_reported_with_its_last_words(tmp_path):
    script = "import sys; sys.exit('no such device')"

    with pytest.raises(RuntimeError, match=r"(?s)ours ended with code 1 before its first token.*no such device"):
        tool.time_first_token("ours", script, "model", "float32", [1, 2], 1)


def test_a_directory_without_a_model_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main([str(tmp_path), "--baseline", "none"])

    assert caught.value.code == 2
    assert "is not a model directory: it has no config.json" in capsys.readouterr().err
