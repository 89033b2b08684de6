#!/usr/bin/env python3
"""Time the choice of a token per row: the compiled kernel, torch, and the likeliest token, in turn, as ratios.

    python tools/bench_sampling.py --rows 1 16 64 --vocabularies 8000 128256

Logits are from a normal distribution of the standard deviation ``--spread`` and copied anew before each call, as a
model writes them. All calls take the sampler's arrays. Results go to stdout as JSON: medians in ms, and the kernel's
time over torch's and over that of the likeliest token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench_engine import positive

from vllm_ext import _custom_ops
from vllm_ext.worker.sampling import ops
from vllm_ext.worker.sampling.metadata import Choice

CASES = {
    "plain": (0, 1.0),
    "top_k=50": (50, 1.0),
    "top_p=0.95": (0, 0.95),
    "top_k=50, top_p=0.95": (50, 0.95),
}
"""``top_k`` and ``top_p`` by name."""
TEMPERATURE = 0.8


def choice_of(rows: int, top_k: int, top_p: float) -> Choice:
    """Draws from all of ``rows`` rows."""
    zeros = np.zeros(rows, dtype=np.int64)
    return Choice(
        rows=np.arange(rows),
        temperature=np.full(rows, TEMPERATURE, dtype=np.float32),
        top_k=zeros + top_k,
        top_p=np.full(rows, top_p, dtype=np.float32),
        seeds=zeros.astype(np.uint64),
        is_seeded=zeros.astype(np.bool_),
        num_output_tokens=zeros,
    )


def measure(rows: int, vocabulary: int, case: str, spread: float, repeats: int) -> dict[str, Any]:
    """Medians of ``repeats`` turns after one that is not counted."""
    logits = torch.randn(rows, vocabulary) * spread
    choice, uniform = choice_of(rows, *CASES[case]), np.random.default_rng(0).random(rows)
    functions: dict[str, Callable[[torch.Tensor], Any]] = {
        "kernel": lambda x: ops.draw_tokens(x, choice, uniform),
        "torch": lambda x: ops.draw_tokens_native(x, choice, uniform),
        "likeliest": ops.most_likely,
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    written = torch.empty_like(logits)
    for turn in range(repeats + 1):
        for name, function in functions.items():
            written.copy_(logits)
            started = time.perf_counter()
            function(written)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "case": case,
        "rows": rows,
        "vocabulary": vocabulary,
        **{f"{name}_ms": round(value * 1e3, 4) for name, value in medians.items()},
        **{f"ratio_to_{name}": round(medians["kernel"] / medians[name], 4) for name in ("torch", "likeliest")},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Time the choice of tokens.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 16, 64])
    parser.add_argument("--vocabularies", type=positive, nargs="+", default=[8000, 128256])
    parser.add_argument("--spread", type=float, default=3.0, help="standard deviation of the logits")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--repeats", type=positive, default=15)
    arguments = parser.parse_args(argv)
    if reason := _custom_ops.why_missing():
        parser.error(f"the kernel does not run here: {reason}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        results = [
            measure(rows, vocabulary, case, arguments.spread, arguments.repeats)
            for vocabulary in arguments.vocabularies
            for rows in arguments.rows
            for case in CASES
        ]
    print(json.dumps({"threads": arguments.threads, "torch": torch.__version__, "draws": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
