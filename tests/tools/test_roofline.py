"""tools/roofline.py: what it measures and how it reckons; the figures themselves are never tested."""

from __future__ import annotations

import json

import pytest
import torch
from support.tools import load_tool

tool = load_tool("roofline")

MODEL = tool.Model(hidden=8, layers=2, heads=4, kv_heads=2, head_dim=3, intermediate=10, vocabulary=50)


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(tool, "MIN_SECONDS", 1e-4)
    monkeypatch.setattr(tool, "MIN_BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(tool, "last_cache_bytes", lambda: 1 << 18)


def fixed(seconds: float, bandwidth: float):
    """A roofline whose products take so long for one row, and for each further one."""
    roofline = tool.Roofline(MODEL, bandwidth=bandwidth)
    roofline.products = lambda rows: (rows * seconds, rows * seconds)
    return roofline


def test_what_a_step_reads_is_what_transformers_counts(random_llama):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(random_llama)
    weights = [
        parameter
        for name, parameter in theirs.named_parameters()
        if parameter.dim() == 2 and name != "model.embed_tokens.weight"
    ]

    assert tool.Model.read(random_llama).weight_bytes() == 4 * sum(weight.numel() for weight in weights)


def test_keys_and_values_of_every_layer_are_read():
    assert MODEL.kv_bytes(10) == 2 * 2 * 2 * 3 * 4 * 10


def test_the_larger_of_reading_and_computing_is_the_step():
    by_memory = fixed(seconds=1e-9, bandwidth=1e3).decode_step(4, context=10)
    by_compute = fixed(seconds=1.0, bandwidth=1e12).decode_step(4, context=10)

    assert by_memory["seconds"] == by_memory["memory_s"] == (MODEL.weight_bytes() + 4 * MODEL.kv_bytes(10)) / 1e3
    assert by_compute["seconds"] == by_compute["compute_s"] > 8.0, "the products, and the attention"


def test_a_generation_is_its_prompts_and_all_steps_but_the_first():
    roofline = fixed(seconds=1e-9, bandwidth=1e3)
    bounds = roofline.bounds(2, prompt_tokens=5, new_tokens=11)

    seconds = roofline.prefill_seconds(2, 5) + 10 * roofline.decode_step(2, 10.5)["seconds"]
    assert bounds["tokens_per_s"] == pytest.approx(22 / seconds)
    assert bounds["tokens_per_s"] < bounds["decode_tokens_per_s"] * 1.1


def test_long_prompts_are_computed_in_several_steps(monkeypatch):
    monkeypatch.setattr(tool, "STEP_TOKENS", 4)
    rows = []
    roofline = fixed(seconds=1.0, bandwidth=1e12)
    products = roofline.products
    roofline.products = lambda count: rows.append(count) or products(count)

    roofline.prefill_seconds(2, prompt_tokens=5)

    assert set(rows) == {4, 2}, "and the output layer's for two"


def test_a_rate_at_the_bound_is_the_whole_share():
    bounds = {"tokens_per_s": 50.0, "decode_tokens_per_s": 100.0}

    assert tool.share(bounds, 50.0) == {"share_of_roofline": 1.0, "share_of_decode_roofline": 0.5}


def test_a_small_share_is_still_one():
    bounds = {"tokens_per_s": 3e5, "decode_tokens_per_s": 6e5}

    assert tool.share(bounds, 50.0) == {"share_of_roofline": 0.000167, "share_of_decode_roofline": 8.33e-05}


def test_everything_is_measured_and_printed(random_llama, capsys):
    options = ["--batch", "1", "3", "--tokens-per-s", "1e6", "2e6", "--threads", "1", "--repeats", "1"]
    assert tool.main([str(random_llama), *options]) == 0

    results = json.loads(capsys.readouterr().out)
    assert results["bandwidth_gb_per_s"] > 0
    assert [row["batch"] for row in results["batches"]] == [1, 3]
    for row in results["batches"]:
        assert row["gemm_gflops_per_s"] > 0
        assert row["step_ms"] == max(row["memory_ms"], row["compute_ms"])
        assert row["share_of_roofline"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens-per-s", "3"], "--tokens-per-s has 1 values for 3 batches"),
        (["--batch", "0"], "take positive numbers"),
    ],
)
def test_bad_options_are_refused(random_llama, options, message, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(random_llama), *options])

    assert message in capsys.readouterr().err


def test_bfloat16_is_half_as_much_to_read(random_llama):
    whole, half = (tool.Model.read(random_llama, dtype) for dtype in (torch.float32, torch.bfloat16))

    assert (2 * half.weight_bytes(), 2 * half.kv_bytes(7)) == (whole.weight_bytes(), whole.kv_bytes(7))
    assert half.attention_flops(7) == whole.attention_flops(7)
