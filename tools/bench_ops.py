#!/usr/bin/env python3
"""What dispatch adds to a call: an op as a model calls it, against the bound method that it comes to.

    python tools/bench_ops.py [--ops rms_norm ...] [--contexts 128 1024 4096] [--json]

Both calls take turns in rounds, and medians over the rounds are shown: microseconds per call, what the op adds, and the
ratio. ``nothing`` is an op that returns what it is given: the dispatch alone; among the others a large product hides it
in its own noise. Attention is one token of one request over so many tokens of context, through the layer, and by a call
of the backend's implementation with the step's metadata in hand. Both make views by head and a tensor for the output.

Shapes are those of the reference model (hidden 512, 8 heads and 4 KV heads of 64, feed-forward 1408, vocabulary 8000),
in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vllm_ext import CustomOp
from vllm_ext.attention.layer import Attention
from vllm_ext.config import Override, load_config
from vllm_ext.contracts.attention import CommonAttentionMetadata
from vllm_ext.contracts.forward_context import set_forward_context
from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheGroupSpec
from vllm_ext.contracts.vllm_config import get_current_vllm_config
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.distributed.parallel_state import GroupCoordinator, init_distributed_environment, use_tp_group
from vllm_ext.engine.scheduling.kv_cache_config import common_layout
from vllm_ext.layers.activation import GeluAndMul, SiluAndMul
from vllm_ext.layers.layernorm import RMSNorm
from vllm_ext.layers.linear import RowParallelLinear
from vllm_ext.layers.logits_processor import LogitsProcessor
from vllm_ext.layers.rotary_embedding import RotaryEmbedding
from vllm_ext.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm_ext.worker.kv_cache import allocate_kv_cache, bind_kv_cache
from vllm_ext.worker.sampling.sampler import Sampler

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INTERMEDIATE, VOCABULARY = 512, 8, 4, 64, 1408, 8000
Call = Callable[[], Any]


class Nothing(CustomOp):
    """Returns what it is given."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return x


@contextmanager
def engine(platform: str) -> Iterator[torch.device]:
    """Layers can be built inside, as for an engine on ``platform``."""
    settings = {"platform.driver": platform, "engine.dtype": "float32"}
    overrides = [Override(key, value, "bench_ops") for key, value in settings.items()]
    dispatcher = bootstrap(load_config(overrides=overrides)).dispatcher()
    device = torch.device(dispatcher.platform.device_type)
    group = GroupCoordinator("tp:0", init_distributed_environment(1, 0, ""), device, dispatcher)
    with dispatcher.activate(), use_tp_group(group), device, dispatcher.platform.inference_mode():
        yield device
    group.destroy()


def ops(num_tokens: int) -> dict[str, Callable[[], tuple[Call, Call]]]:
    """By name, what makes a call through the op, and one of the method that it comes to."""
    x, wide = torch.randn(num_tokens, HIDDEN), torch.randn(num_tokens, 2 * INTERMEDIATE)
    ids = torch.zeros(num_tokens, dtype=torch.int64)
    return {
        "nothing": lambda: _pair(Nothing(), x),
        "rms_norm": lambda: _pair(_filled(RMSNorm(HIDDEN)), x, torch.randn(num_tokens, HIDDEN)),
        "silu_and_mul": lambda: _pair(SiluAndMul(), wide),
        "gelu_and_mul": lambda: _pair(GeluAndMul("tanh"), wide),
        "rotary_embedding": lambda: _pair(RotaryEmbedding(HEAD_SIZE, 64, torch.rand(HEAD_SIZE // 2)), ids, x),
        "vocab_parallel_embedding": lambda: _pair(_filled(VocabParallelEmbedding(VOCABULARY, HIDDEN)), ids),
        "row_parallel_linear": lambda: _pair(_filled(RowParallelLinear(HIDDEN, HIDDEN)), x),
        "logits_processor": lambda: _pair(LogitsProcessor(VOCABULARY), _filled(ParallelLMHead(VOCABULARY, HIDDEN)), x),
        "sampler": lambda: _pair(Sampler(0), torch.randn(num_tokens, VOCABULARY)),
    }


def _pair(layer: torch.nn.Module, *args: Any) -> tuple[Call, Call]:
    bound = layer._forward_method if isinstance(layer, CustomOp) else layer.forward
    return lambda: layer(*args), lambda: bound(*args)


def _filled(layer: Any) -> Any:
    """With weights, laid out as the loader has it done."""
    for param in layer.parameters():
        param.normal_(std=0.02)
    if hasattr(layer, "process_weights_after_loading"):
        layer.process_weights_after_loading(torch.float32)
    return layer


@contextmanager
def attention(context: int, device: torch.device) -> Iterator[tuple[Call, Call]]:
    """One token of one request after ``context - 1`` others: the layer, and the implementation behind it."""
    layer = Attention(HEADS, HEAD_SIZE, HEAD_SIZE**-0.5, KV_HEADS, prefix=f"attention_{context}")
    config = get_current_vllm_config()
    spec = layer.get_kv_cache_spec(config)
    num_blocks = -(-context // spec.block_size)
    supported = layer.attn_backend.supported_kv_cache_layouts()
    layout = common_layout([None if supported is None else list(supported)])
    name = layer.layer_name
    caches = allocate_kv_cache(KVCacheConfig(num_blocks, [KVCacheGroupSpec([name], spec)], layout), device)
    bind_kv_cache(caches, {name: layer})
    starts, lens = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([context], dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts.cpu(),
        seq_lens=lens,
        seq_lens_cpu=lens.cpu(),
        num_reqs=1,
        num_actual_tokens=1,
        max_query_len=1,
        max_seq_len=context,
        block_table_tensor=torch.arange(num_blocks, dtype=torch.int32)[None],
        slot_mapping=torch.tensor([context - 1]),
    )
    metadata = layer.attn_backend.get_builder_cls()(spec, [name], config, device).build(0, common)
    query, key, value = (torch.randn(1, heads * HEAD_SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS))
    forward, kv_cache = layer.impl.forward, layer.kv_cache

    def direct() -> torch.Tensor:
        output = forward(
            layer,
            query.view(1, HEADS, HEAD_SIZE),
            key.view(1, KV_HEADS, HEAD_SIZE),
            value.view(1, KV_HEADS, HEAD_SIZE),
            kv_cache,
            metadata,
            query.new_empty((1, HEADS, HEAD_SIZE)),
        )
        return output.view(1, HEADS * HEAD_SIZE)

    with set_forward_context({name: metadata}, 1):
        yield lambda: layer(query, key, value), direct


def compare(through: Call, direct: Call, calls: int, repeats: int) -> dict[str, float]:
    """Both in turn, ``repeats`` rounds of ``calls`` calls each."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(repeats + 1):
        # Whoever comes second finds the caches warm: they take turns in that too.
        order = ((0, through), (1, direct)) if round_number % 2 else ((1, direct), (0, through))
        for which, call in order:
            started = time.perf_counter()
            for _ in range(calls):
                call()
            if round_number:
                times[which].append(1e6 * (time.perf_counter() - started) / calls)
    added = statistics.median(a - b for a, b in zip(*times, strict=True))
    through_us, direct_us = map(statistics.median, times)
    return {
        "through_us": round(through_us, 3),
        "direct_us": round(direct_us, 3),
        "added_us": round(added, 3),
        "ratio": round(through_us / direct_us, 3),
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with engine(args.platform) as device:
        available = ops(args.tokens)
        for name in available if args.ops is None else args.ops:
            rows.append({"op": name, **compare(*available[name](), args.calls, args.repeats)})
        for context in args.contexts:
            with attention(context, device) as calls:
                rows.append({"op": "attention", "context": context, **compare(*calls, args.calls, args.repeats)})
    return rows


def main(argv: list[str] | None = None) -> int:
    names = list(ops(1))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="*", choices=names, metavar="OP", help=f"only these of {', '.join(names)}")
    parser.add_argument("--contexts", type=int, nargs="*", default=[128, 1024, 4096], metavar="N")
    parser.add_argument("--tokens", type=int, default=1, metavar="N", help="tokens that an op is given (1)")
    parser.add_argument("--calls", type=int, default=300, metavar="N", help="calls in a round")
    parser.add_argument("--repeats", type=int, default=31, metavar="N", help="rounds")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads")
    parser.add_argument("--platform", default="cpu", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = measure(args)
    if args.json:
        json.dump(rows, sys.stdout)
        sys.stdout.write("\n")
        return 0
    print(f"{'op':28} {'context':>7} {'through, us':>12} {'direct, us':>11} {'added, us':>10} {'ratio':>7}")
    for row in rows:
        figures = f"{row['through_us']:12.2f} {row['direct_us']:11.2f} {row['added_us']:10.3f} {row['ratio']:7.3f}"
        print(f"{row['op']:28} {row.get('context', ''):>7} {figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
