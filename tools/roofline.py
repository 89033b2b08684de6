#!/usr/bin/env python3
"""How fast this machine could decode a model at best: its measured GEMM rate and memory bandwidth.

    python tools/roofline.py /tmp/reference
    python tools/roofline.py /tmp/reference --batch 16 --tokens-per-s 1231 --dtype bfloat16

Measured, with torch in the same dtype: the products of the model's layers with as many rows as there are requests, on a
weight that stays in the cache, by oneDNN with the weight in its own layout or as it is, whichever is faster; and the
rate at which a buffer several times as large as the last cache is read. The shortest decode step reads each weight
once and the KV cache of the mean context once, and computes what it has to at the measured rate: the larger of the two
times. A generation's bound adds the prompts, computed in the same way in steps of at most 2048 tokens. Results go to
stdout as JSON. A share near 1 means that only other arithmetic or a smaller dtype could make it faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_engine import require_model
from torch import Tensor

from vllm_ext.layers.linear_method import OneDNNLinearMethod

STEP_TOKENS = 2048
CACHE_MULTIPLE = 4
MIN_BUFFER_BYTES = 256 << 20
MIN_SECONDS = 0.05
"""Of one measurement; the best of several counts, because other processes only ever make it slower."""
PACK_ROWS = 16


@dataclass(frozen=True, slots=True)
class Model:
    """The sizes that decide how much there is to read and to compute."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    dtype: torch.dtype = torch.float32

    @classmethod
    def read(cls, directory: Path, dtype: torch.dtype = torch.float32) -> Model:
        config = json.loads((directory / "config.json").read_text())
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            dtype=dtype,
        )

    def layer_products(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the products of one layer, those on the same input as one."""
        attention = self.heads * self.head_dim
        return [
            (self.hidden, attention + 2 * self.kv_heads * self.head_dim),
            (attention, self.hidden),
            (self.hidden, 2 * self.intermediate),
            (self.intermediate, self.hidden),
        ]

    def output_product(self) -> tuple[int, int]:
        return self.hidden, self.vocabulary

    def num_weights(self) -> int:
        """What a decode step multiplies with. The input embeddings are looked up."""
        per_layer = sum(inputs * outputs for inputs, outputs in self.layer_products())
        return self.layers * per_layer + self.hidden * self.vocabulary

    def weight_bytes(self) -> int:
        """What a decode step reads."""
        return self.dtype.itemsize * self.num_weights()

    def kv_bytes(self, context: float) -> float:
        """Keys and values of one request."""
        return self.dtype.itemsize * 2 * self.layers * self.kv_heads * self.head_dim * context

    def attention_flops(self, context: float) -> float:
        """Of one token that sees ``context`` tokens."""
        return 4 * self.layers * self.heads * self.head_dim * context


def best_seconds(run: Callable[[], object], repeats: int, min_seconds: float = MIN_SECONDS) -> float:
    """Of one call: the best of the repeats, each of so many calls that the clock is exact."""
    run()
    started = time.perf_counter()
    run()
    calls = max(1, round(min_seconds / max(time.perf_counter() - started, 1e-7)))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            run()
        best = min(best, (time.perf_counter() - started) / calls)
    return best


def product_seconds(rows: int, shape: tuple[int, int], dtype: torch.dtype, repeats: int) -> float:
    """Of ``rows`` vectors times one weight, the faster way."""
    inputs, outputs = shape
    weight, x = torch.randn(outputs, inputs).to(dtype), torch.randn(rows, inputs).to(dtype)
    ways: list[Callable[[], Tensor]] = [lambda: F.linear(x, weight)]
    if OneDNNLinearMethod.can_pack(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    return min(best_seconds(way, repeats) for way in ways)


def last_cache_bytes() -> int:
    """Of the largest cache that the system tells of, else 32 MiB."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=32 << 20)


def read_bandwidth(buffer_bytes: int, repeats: int) -> float:
    """Bytes per second, by the faster of two sums over one buffer."""
    buffer = torch.ones(buffer_bytes // torch.float32.itemsize)
    seconds = min(best_seconds(way, repeats) for way in (buffer.sum, lambda: torch.dot(buffer, buffer)))
    return buffer.nbytes / seconds


class Roofline:
    """The measurements for one model, each made when it is first asked for.

    Args:
        bandwidth: bytes per second, instead of measuring.
    """

    def __init__(self, model: Model, repeats: int = 5, bandwidth: float | None = None) -> None:
        self.model = model
        self._repeats = repeats
        self._seconds: dict[int, tuple[float, float]] = {}
        self.bandwidth = bandwidth or read_bandwidth(
            max(CACHE_MULTIPLE * last_cache_bytes(), MIN_BUFFER_BYTES), repeats
        )

    def products(self, rows: int) -> tuple[float, float]:
        """Seconds of all layers' products, and of the output layer's."""
        if rows not in self._seconds:
            shapes = [*self.model.layer_products(), self.model.output_product()]
            *layer, output = (product_seconds(rows, shape, self.model.dtype, self._repeats) for shape in shapes)
            self._seconds[rows] = self.model.layers * sum(layer), output
        return self._seconds[rows]

    def flops_per_s(self, rows: int) -> float:
        """Over all products of a step."""
        return 2 * rows * self.model.num_weights() / sum(self.products(rows))

    def decode_step(self, batch: int, context: float) -> dict[str, float]:
        """The parts of the shortest step, in seconds."""
        memory = (self.model.weight_bytes() + batch * self.model.kv_bytes(context)) / self.bandwidth
        compute = sum(self.products(batch)) + batch * self.model.attention_flops(context) / self.flops_per_s(batch)
        return {"memory_s": memory, "compute_s": compute, "seconds": max(memory, compute)}

    def prefill_seconds(self, batch: int, prompt_tokens: float) -> float:
        """The shortest time for all prompts, each with the output layer for its last token only."""
        left = max(1, round(batch * prompt_tokens))
        output = self.products(batch)[1]
        seconds = output if left <= STEP_TOKENS else 0.0
        total = left
        while left:
            rows = min(left, STEP_TOKENS)
            attention = rows * self.model.attention_flops(prompt_tokens / 2) / self.flops_per_s(rows)
            compute = self.products(rows)[0] + attention + (output * rows / total if total > STEP_TOKENS else 0.0)
            seconds += max(compute, self.model.weight_bytes() / self.bandwidth)
            left -= rows
        return seconds

    def bounds(self, batch: int, prompt_tokens: float, new_tokens: int) -> dict[str, float]:
        """Tokens per second at most: of decode steps alone, and of a generation with its prompts."""
        step = self.decode_step(batch, prompt_tokens + new_tokens / 2)
        prefill = self.prefill_seconds(batch, prompt_tokens)
        # The first token comes out of the prompt's own step.
        whole = prefill + (new_tokens - 1) * step["seconds"]
        return {
            "batch": batch,
            "gemm_gflops_per_s": self.flops_per_s(batch) / 1e9,
            "memory_ms": 1e3 * step["memory_s"],
            "compute_ms": 1e3 * step["compute_s"],
            "step_ms": 1e3 * step["seconds"],
            "prefill_ms": 1e3 * prefill,
            "decode_tokens_per_s": batch / step["seconds"],
            "tokens_per_s": batch * new_tokens / whole,
        }


def share(bounds: dict[str, float], tokens_per_s: float) -> dict[str, float]:
    """How much of a generation's bound is reached, and of that of decode steps, as though prompts cost nothing.

    To three digits, however little it is.
    """
    return {
        "share_of_roofline": float(f"{tokens_per_s / bounds['tokens_per_s']:.3g}"),
        "share_of_decode_roofline": float(f"{tokens_per_s / bounds['decode_tokens_per_s']:.3g}"),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="The shortest possible decode step.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model directory")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64], help="requests in a step")
    parser.add_argument("--prompt-tokens", type=float, default=60, help="mean length of a prompt")
    parser.add_argument("--max-tokens", type=int, default=64, help="new tokens per prompt")
    parser.add_argument("--tokens-per-s", type=float, nargs="+", help="reached, one for each batch; gives the shares")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and KV cache")
    arguments = parser.parse_args(argv)
    require_model(parser, arguments.model)
    if min([arguments.threads, arguments.repeats, arguments.max_tokens, *arguments.batch]) < 1:
        parser.error("--batch, --max-tokens, --threads and --repeats take positive numbers")
    rates = arguments.tokens_per_s
    if rates and len(rates) != len(arguments.batch):
        parser.error(f"--tokens-per-s has {len(rates)} values for {len(arguments.batch)} batches")
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        roofline = Roofline(Model.read(arguments.model, getattr(torch, arguments.dtype)), arguments.repeats)
        rows: list[dict[str, Any]] = []
        for number, batch in enumerate(arguments.batch):
            bounds = roofline.bounds(batch, arguments.prompt_tokens, arguments.max_tokens)
            shares = share(bounds, rates[number]) if rates else {}
            rows.append({name: round(value, 3) for name, value in bounds.items()} | shares)
    setting = {"bandwidth_gb_per_s": round(roofline.bandwidth / 1e9, 2), "threads": arguments.threads}
    print(json.dumps({"dtype": arguments.dtype, **setting, "batches": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
