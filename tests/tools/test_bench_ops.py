"""tools/bench_ops.py: what it compares and prints; the figures themselves are never tested."""

from __future__ import annotations

import json

import pytest
import torch
from support.tools import load_tool

tool = load_tool("bench_ops")


def test_every_op_and_context_is_compared(capsys):
    assert tool.main(["--contexts", "5", "40", "--calls", "2", "--repeats", "1", "--json"]) == 0

    rows = json.loads(capsys.readouterr().out)
    assert [row["op"] for row in rows] == [*tool.ops(1), "attention", "attention"]
    assert [row["context"] for row in rows[-2:]] == [5, 40]
    assert all(row["through_us"] > 0 and row["direct_us"] > 0 for row in rows)


def test_without_json_it_is_a_table(capsys):
    tool.main(["--ops", "nothing", "--contexts", "--calls", "2", "--repeats", "1"])

    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "op"
    assert row.split()[0] == "nothing"


@pytest.mark.parametrize("name", [name for name in tool.ops(1) if name != "rms_norm"])
def test_both_ways_compute_the_same(name):
    with tool.engine("cpu"):
        through, direct = tool.ops(3)[name]()

        torch.testing.assert_close(through(), direct())


def test_rms_norm_adds_to_its_residual_either_way():
    with tool.engine("cpu"):
        through, direct = tool.ops(3)["rms_norm"]()

        before = through()[1].clone()
        assert not torch.equal(direct()[1], before)


def test_attention_attends_to_all_of_its_context():
    with tool.engine("cpu") as device, tool.attention(33, device) as (through, direct):
        output = through()

        torch.testing.assert_close(output.view(-1), direct().view(-1))
        assert output.shape == (1, tool.HEADS * tool.HEAD_SIZE)
        assert output.abs().max() > 0


def test_dispatch_is_one_method_whatever_the_calls():
    """A round of either way makes as many calls of the op."""
    counts = {"through": 0, "direct": 0}

    def count(which):
        counts[which] += 1

    figures = tool.compare(lambda: count("through"), lambda: count("direct"), 3, 4)

    assert counts == {"through": 15, "direct": 15}
    assert set(figures) == {"through_us", "direct_us", "added_us", "ratio"}
