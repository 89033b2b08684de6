#!/usr/bin/env python3
"""Time a model's dense products in the compiled kernel, in oneDNN and in torch, in turn, as ratios.

    python tools/bench_linear.py --rows 1 8 16 64 512 --dtype bfloat16

The weights are those of 8 layers of the reference shape, 94 MB in float32 and 47 MB in the others, so that each product
reads its own from memory, as a step of a model does. Results go to stdout as JSON: medians in ms, and the kernel's time
over the others'.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from bench_engine import medians_in_turn, positive

from vllm_ext import _custom_ops
from vllm_ext.layers.linear_method import OneDNNLinearMethod

LAYERS = 8
SHAPES = [(1024, 512), (512, 512), (2816, 512), (512, 1408)]
"""``[out, in]`` of a layer: query, key and value; output; gate and up; down."""


def products(rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """By implementation, a function that runs all products once; oneDNN's where it can, in this dtype."""
    weights = [torch.randn(shape).to(dtype) for _ in range(LAYERS) for shape in SHAPES]
    inputs = {width: torch.randn(rows, width).to(dtype) for _, width in SHAPES}
    panels = [_custom_ops.pack_weight(weight) for weight in weights]
    has_onednn = OneDNNLinearMethod.can_pack(dtype)
    reordered = [torch.ops.mkldnn._reorder_linear_weight(weight, 16) for weight in weights] if has_onednn else []

    def kernel() -> None:
        for weight, packed in zip(weights, panels, strict=True):
            _custom_ops.linear(inputs[weight.shape[1]], packed, None, weight.shape[0])

    def onednn() -> None:
        for weight, packed in zip(weights, reordered, strict=True):
            torch.ops.mkldnn._linear_pointwise(inputs[weight.shape[1]], packed, None, "none", [], "")

    def plain() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    return {"kernel": kernel, **({"onednn": onednn} if has_onednn else {}), "torch": plain}


def measure(rows: int, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Medians of ``repeats`` turns."""
    medians = medians_in_turn(products(rows, dtype), repeats)
    return {
        "rows": rows,
        **{f"{name}_ms": round(value * 1e3, 3) for name, value in medians.items()},
        **{
            f"ratio_to_{name}": round(medians["kernel"] / other, 3)
            for name, other in medians.items()
            if name != "kernel"
        },
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Time the dense products.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 8, 16, 64, 512])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--repeats", type=positive, default=15)
    arguments = parser.parse_args(argv)
    dtype = getattr(torch, arguments.dtype)
    if not _custom_ops.linear_panel(dtype):
        missing = _custom_ops.why_missing() or f"the processor lacks AVX-512 for {arguments.dtype}"
        parser.error(f"the kernel does not run here: {missing}")
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        results = [measure(rows, dtype, arguments.repeats) for rows in arguments.rows]
    setting = {"dtype": arguments.dtype, "threads": arguments.threads, "torch": torch.__version__}
    print(json.dumps({**setting, "products": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
