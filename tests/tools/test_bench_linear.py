"""tools/bench_linear.py: what it measures and prints; the figures themselves are never tested."""

from __future__ import annotations

import json

import pytest
import torch
from support.tools import load_tool, quotient

from vllm_ext import _custom_ops
from vllm_ext.layers.linear_method import OneDNNLinearMethod

tool = load_tool("bench_linear")


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_number_of_rows_is_timed(capsys, monkeypatch, dtype):
    if not _custom_ops.linear_panel(getattr(torch, dtype)):
        pytest.skip("the compiled kernel does not run here")
    monkeypatch.setattr(tool, "LAYERS", 1)

    assert tool.main(["--rows", "1", "3", "--threads", "1", "--repeats", "1", "--dtype", dtype]) == 0

    products = json.loads(capsys.readouterr().out)["products"]
    assert [entry["rows"] for entry in products] == [1, 3]
    for entry in products:
        others = ["torch"] + ["onednn"] * OneDNNLinearMethod.can_pack(getattr(torch, dtype))
        assert {key for key in entry if key.startswith("ratio_")} == {f"ratio_to_{name}" for name in others}
        for name in others:
            assert entry[f"ratio_to_{name}"] == quotient(entry["kernel_ms"], entry[f"{name}_ms"], digits=3)


def test_without_the_kernel_there_is_nothing_to_time(capsys, monkeypatch):
    monkeypatch.setattr(_custom_ops, "linear_panel", lambda dtype: 0)

    with pytest.raises(SystemExit):
        tool.main([])

    assert "the kernel does not run here" in capsys.readouterr().err
