"""``vllm-ext run --stats``: what a run took, on stderr, beside the text that it is about."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from vllm_ext.cli.main import main
from vllm_ext.cli.run_stats import RunStats, histogram, percentile
from vllm_ext.contracts.stats import FinishedRequestStats, IterationStats, PrefixCacheStats, SchedulerStats

RUN = ["run", "She had been", "She had been", "He was", "--json", "--max-tokens", "7", "--seed", "3", "--set"]


@pytest.fixture
def ran(capsys) -> tuple[list, str]:
    """The outputs of a run, and the summary."""
    assert main([*RUN, "engine.block_size=1", "--stats"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_it_counts_what_the_outputs_show(ran):
    outputs, summary = ran
    num_prompt_tokens = sum(len(output["prompt_token_ids"]) for output in outputs)
    # Of two prompts that are the same, all but the last token is found, and of the third the beginning, if any.
    num_cached = len(outputs[0]["prompt_token_ids"]) - 1

    assert re.search(r"^requests +3 \(length 3\)$", summary, re.MULTILINE)
    assert f"prompt tokens        {num_prompt_tokens}, of {num_prompt_tokens} looked for {num_cached} cached" in summary
    assert re.search(r"^generated tokens +21 in \d+\.\d\d s, \d+\.\d tokens/s$", summary, re.MULTILINE)
    assert re.search(r"^preemptions +0$", summary, re.MULTILINE)


def test_it_has_median_and_95th_percentile_of_each_latency(ran):
    for name in ("time to first token", "inter-token latency", "end to end"):
        assert re.search(rf"^{name} +\d+\.\d\d ms +\d+\.\d\d ms$", ran[1], re.MULTILINE)


def test_the_histogram_has_each_latency_between_two_tokens_once(ran):
    bars = ran[1].partition("inter-token latencies:\n")[2].splitlines()

    assert sum(int(line.split()[-1]) for line in bars) == 3 * 6
    assert max(line.count("#") for line in bars) == 40


def test_without_it_nothing_is_said(capsys):
    assert main([*RUN, "engine.block_size=1"]) == 0

    assert capsys.readouterr().err == ""


def test_the_text_is_the_same_with_it(capsys, ran):
    main([*RUN, "engine.block_size=1"])

    assert json.loads(capsys.readouterr().out) == ran[0]


@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0], [5.0, 1.0, 4.0, 2.0, 3.0], list(range(100, 0, -1))])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_a_percentile_is_numpys(values, share):
    assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share))


def test_of_nothing_there_is_no_percentile():
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    "values, counts",
    [
        # From 1 to 256 ms, eight ranges of which each is twice as far as the one before.
        ([0.001, 0.0015, 0.003, 0.012, 0.2, 0.256], [2, 1, 0, 1, 0, 0, 0, 2]),
        ([0.002] * 5, [5]),
        ([0.0, 0.0], [2]),
    ],
)
def test_bars_are_as_long_as_their_share_of_the_longest(values, counts):
    lines = list(histogram(values))

    assert [int(line.split()[-1]) for line in lines] == counts
    assert [line.count("#") for line in lines] == [-(-40 * count // max(counts)) for count in counts]


def test_a_run_without_a_second_token_has_no_histogram():
    stats = RunStats()
    stats.record(
        SchedulerStats(prefix_cache_stats=PrefixCacheStats(1, 8, 4)),
        IterationStats(
            num_generation_tokens=1,
            num_prompt_tokens=8,
            num_preempted_reqs=2,
            time_to_first_tokens_iter=[0.25],
            finished_requests=[FinishedRequestStats("stop", "a", 0.5)],
        ),
    )
    lines = list(stats.lines(2.0))

    assert lines == [
        "requests             1 (stop 1)",
        "prompt tokens        8, of 8 looked for 4 cached",
        "generated tokens     1 in 2.00 s, 0.5 tokens/s",
        "preemptions          2",
        "                         median   95th percentile",
        "time to first token   250.00 ms         250.00 ms",
        "inter-token latency           -                 -",
        "end to end            500.00 ms         500.00 ms",
    ]
