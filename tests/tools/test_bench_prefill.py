"""tools/bench_prefill.py: what it measures and prints; the figures themselves are never tested."""

from __future__ import annotations

import json

import pytest
import torch
from support.tools import load_tool, quotient

from vllm_ext import _custom_ops

tool = load_tool("bench_prefill")
needs_kernels = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@needs_kernels
def test_every_step_is_timed(capsys):
    assert tool.main(["--requests", "2x3", "20+5", "--threads", "1", "--repeats", "1"]) == 0

    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [(step["requests"], step["tokens"]) for step in steps] == [(2, 6), (1, 5)]
    for step in steps:
        assert step["ratio_to_torch"] == quotient(step["kernel_ms"], step["torch_ms"], digits=3)


@needs_kernels
def test_both_backends_compute_the_same():
    outputs = [layer() for layer in tool.layers(tool.requests("3x20+5-40")).values()]

    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_lengths_are_drawn_from_a_range():
    drawn = tool.requests("50x7+3-5")

    assert len(drawn) == 50
    assert set(drawn) == {(7, 3), (7, 4), (7, 5)}


@pytest.mark.parametrize("text", ["", "x5", "3x", "5-3", "0", "a"])
def test_what_is_not_a_step_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--requests", text])

    assert f"{text!r} is not like 64x20-100 or 4x1536+512" in capsys.readouterr().err


def test_without_the_kernel_there_is_nothing_to_time(capsys, monkeypatch):
    monkeypatch.setattr(_custom_ops, "why_missing", lambda: "no compiler")

    with pytest.raises(SystemExit):
        tool.main([])

    assert "the kernel does not run here: no compiler" in capsys.readouterr().err
