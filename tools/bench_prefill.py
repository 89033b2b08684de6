#!/usr/bin/env python3
"""Time a layer's attention of prompts in the compiled kernel (CPU_ATTN) and in torch's (SDPA), in turn, as ratios.

    python tools/bench_prefill.py --requests 64x20-100 2048 4x1536+512

Requests are written as how many, tokens that the cache has before, and new tokens, of which only the last is needed;
a range stands for lengths drawn from it. A layer has 8 heads and 4 KV heads of 64, in float32. Both backends store the
step's keys and values, too. Results go to stdout as JSON: medians in ms, and the kernel's time over torch's.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable

import torch
from bench_engine import medians_in_turn, positive

from vllm_ext import _custom_ops
from vllm_ext.attention.backends.cpu_attn import CPUAttentionBackend
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.contracts.attention import AttentionBackend, CommonAttentionMetadata
from vllm_ext.contracts.kv_cache import FullAttentionSpec
from vllm_ext.contracts.vllm_config import HFConfig, ModelConfig, VllmConfig

STEPS = ("64x20-100", "2048", "4x1536+512")
HEADS, KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 8, 4, 64, 16
BACKENDS: dict[str, type[AttentionBackend]] = {"kernel": CPUAttentionBackend, "torch": SDPABackend}
Requests = list[tuple[int, int]]


def requests(text: str) -> Requests:
    """``(tokens before, new tokens)`` of each request that ``text`` stands for."""
    match = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)\+)?(\d+)(?:-(\d+))?", text)
    if match is None or int(match[3]) < 1 or int(match[4] or match[3]) < int(match[3]):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 64x20-100 or 4x1536+512")
    count, before, shortest, longest = (int(group) if group else None for group in match.groups())
    draw = random.Random(0)
    return [(before or 0, draw.randint(shortest or 1, longest or shortest or 1)) for _ in range(count or 1)]


def common_metadata(reqs: Requests) -> CommonAttentionMetadata:
    """A step of these requests, whose blocks are scattered."""
    counts, lens = [new for _, new in reqs], [before + new for before, new in reqs]
    widths = [-(-length // BLOCK_SIZE) for length in lens]
    blocks = torch.randperm(sum(widths), dtype=torch.int32).split(widths)
    places = [torch.arange(before, before + new) for before, new in reqs]
    slots = [
        row[at // BLOCK_SIZE].long() * BLOCK_SIZE + at % BLOCK_SIZE for row, at in zip(blocks, places, strict=True)
    ]
    starts, seq_lens = torch.tensor([0, *counts]).cumsum(0).int(), torch.tensor(lens).int()
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=seq_lens,
        seq_lens_cpu=seq_lens,
        num_reqs=len(reqs),
        num_actual_tokens=sum(counts),
        max_query_len=max(counts),
        max_seq_len=max(lens),
        block_table_tensor=torch.nn.utils.rnn.pad_sequence(list(blocks), batch_first=True),
        slot_mapping=torch.cat(slots),
    )


def layers(reqs: Requests) -> dict[str, Callable[[], torch.Tensor]]:
    """By backend, a function that computes a layer once."""
    common = common_metadata(reqs)
    query, key, value = (torch.randn(common.num_actual_tokens, n, HEAD_SIZE) for n in (HEADS, KV_HEADS, KV_HEADS))
    num_blocks = sum(-(-sum(req) // BLOCK_SIZE) for req in reqs)
    kv_cache = torch.randn(num_blocks, KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    config = VllmConfig(ModelConfig("", HFConfig({}), torch.float32, common.max_seq_len, ""))
    spec = FullAttentionSpec(BLOCK_SIZE, KV_HEADS, HEAD_SIZE, torch.float32, None)

    def of(backend: type[AttentionBackend]) -> Callable[[], torch.Tensor]:
        metadata = backend.get_builder_cls()(spec, [], config, torch.device("cpu")).build(0, common)
        impl = backend.get_impl_cls()(HEADS, HEAD_SIZE, HEAD_SIZE**-0.5, KV_HEADS)
        layer, output = torch.nn.Module(), torch.empty_like(query)
        return lambda: impl.forward(layer, query, key, value, kv_cache, metadata, output)

    return {name: of(backend) for name, backend in BACKENDS.items()}


def measure(reqs: Requests, repeats: int) -> dict[str, float]:
    """Medians of ``repeats`` turns after one that is not counted."""
    medians = medians_in_turn(layers(reqs), repeats)
    return {
        "requests": len(reqs),
        "tokens": sum(new for _, new in reqs),
        **{f"{name}_ms": round(value * 1e3, 3) for name, value in medians.items()},
        "ratio_to_torch": round(medians["kernel"] / medians["torch"], 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time attention of prompts.")
    steps = {"type": requests, "nargs": "+", "default": [*map(requests, STEPS)], "metavar": "REQS"}
    parser.add_argument("--requests", **steps, help=f"steps to time ({' '.join(STEPS)})")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="torch's threads (2)")
    parser.add_argument("--repeats", type=positive, default=15, metavar="N", help="turns (15)")
    arguments = parser.parse_args(argv)
    if missing := _custom_ops.why_missing():
        parser.error(f"the kernel does not run here: {missing}")
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        results = [measure(reqs, arguments.repeats) for reqs in arguments.requests]
    print(json.dumps({"threads": arguments.threads, "torch": torch.__version__, "steps": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
