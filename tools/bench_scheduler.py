#!/usr/bin/env python3
"""Time what the scheduler costs per step: ``schedule()`` and ``update_from_output()``, without any worker.

    python tools/bench_scheduler.py --batch 1 16 64

All requests decode, one token each per step; the processor time of a step, which other processes do not add to, is a
mean over ``--tokens`` steps, and the median of the repeats is printed, as JSON. Prompts differ, so that none finds a
prefix of another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

from vllm_ext.contracts.kv_cache import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.contracts.vllm_config import CacheConfig, HFConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm_ext.engine.scheduling.request import Request
from vllm_ext.engine.scheduling.scheduler import Scheduler

BLOCK_SIZE, MAX_MODEL_LEN, PROMPT_TOKENS = 16, 2048, 60


def make_scheduler(max_num_seqs: int) -> Scheduler:
    """A scheduler whose cache holds all requests."""
    spec = FullAttentionSpec(BLOCK_SIZE, num_kv_heads=4, head_size=64, dtype=torch.float32)
    vllm_config = VllmConfig(
        ModelConfig("none", HFConfig({}), torch.float32, MAX_MODEL_LEN, "none"),
        CacheConfig(block_size=BLOCK_SIZE),
        scheduler_config=SchedulerConfig(max_num_seqs, max_num_seqs * PROMPT_TOKENS),
    )
    num_blocks = max_num_seqs * MAX_MODEL_LEN // BLOCK_SIZE
    return Scheduler(vllm_config, KVCacheConfig(num_blocks, (KVCacheGroupSpec(("layer",), spec),)))


def answer(output: SchedulerOutput) -> ModelRunnerOutput:
    """A token for each request."""
    ids = list(output.num_scheduled_tokens)
    return ModelRunnerOutput(ids, {req_id: index for index, req_id in enumerate(ids)}, [[7] for _ in ids])


def step_seconds(batch: int, num_tokens: int) -> float:
    """Mean time of a decode step."""
    scheduler = make_scheduler(batch)
    params = SamplingParams(max_tokens=num_tokens + 1, ignore_eos=True)
    for number in range(batch):
        scheduler.add_request(Request(str(number), [number] * PROMPT_TOKENS, params))
    output = scheduler.schedule()
    scheduler.update_from_output(output, answer(output))
    seconds = 0.0
    for _ in range(num_tokens - 1):
        started = time.thread_time()
        output = scheduler.schedule()
        seconds += time.thread_time() - started
        model_output = answer(output)
        started = time.thread_time()
        scheduler.update_from_output(output, model_output)
        seconds += time.thread_time() - started
    return seconds / (num_tokens - 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64], metavar="N", help="decoding requests")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="steps of a repeat")
    parser.add_argument("--repeats", type=int, default=9, metavar="N")
    args = parser.parse_args(argv)
    rows = []
    for batch in args.batch:
        times = [step_seconds(batch, args.tokens) for _ in range(args.repeats)]
        rows.append({"batch": batch, "us_per_step": round(1e6 * statistics.median(times), 1)})
    json.dump(rows, sys.stdout)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
