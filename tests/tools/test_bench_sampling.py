"""tools/bench_sampling.py: what it measures and prints; the figures themselves are never tested."""

from __future__ import annotations

import json

import pytest
import torch
from support.tools import load_tool, quotient

from vllm_ext import _custom_ops

tool = load_tool("bench_sampling")


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_case_is_timed_for_every_number_of_rows_and_vocabulary(capsys):
    if _custom_ops.why_missing():
        pytest.skip("the compiled kernels do not run here")

    assert tool.main(["--rows", "1", "3", "--vocabularies", "40", "70", "--threads", "1", "--repeats", "1"]) == 0

    draws = json.loads(capsys.readouterr().out)["draws"]
    assert [(entry["vocabulary"], entry["rows"], entry["case"]) for entry in draws] == [
        (vocabulary, rows, case) for vocabulary in (40, 70) for rows in (1, 3) for case in tool.CASES
    ]
    for entry in draws:
        assert entry["ratio_to_torch"] == quotient(entry["kernel_ms"], entry["torch_ms"], digits=4, of_ratio=4)


def test_without_the_kernels_there_is_nothing_to_time(capsys, monkeypatch):
    monkeypatch.setattr(_custom_ops, "why_missing", lambda: "no compiler")

    with pytest.raises(SystemExit):
        tool.main([])

    assert "the kernel does not run here: no compiler" in capsys.readouterr().err
