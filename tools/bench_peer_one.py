#!/usr/bin/env python3
"""One engine in a process of its own, for ``tools/bench_peers.py``: generates what it is told to and times it.

    python tools/bench_peer_one.py ours MODEL DTYPE THREADS MAX_NUM_SEQS
    python tools/bench_peer_one.py vllm MODEL DTYPE THREADS MAX_NUM_SEQS

When the engine stands, it prints ``ready`` as a JSON line; then, for each JSON line ``{"prompts": token ids,
"max_tokens": N, "gaps": false}`` on stdin, a line with ``seconds``, ``token_ids`` and, where asked for, ``gaps``: by
how much the best token's logit was above the next one's. Everything else that is printed goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from bench_engine import KV_CACHE_BYTES

Generate = Callable[[list[list[int]], int, bool], list[Any]]
"""Prompts, a number of tokens, and whether logprobs are wanted, to the outputs of either engine: they look alike."""


def ours(model: str, dtype: str, max_num_seqs: int) -> Generate:
    from vllm_ext import LLM, SamplingParams

    llm = LLM(model=model, dtype=dtype, max_num_seqs=max_num_seqs, kv_cache_memory=KV_CACHE_BYTES)

    def generate(prompts: list[list[int]], num_tokens: int, gaps: bool) -> list[Any]:
        params = SamplingParams(
            temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, logprobs=2 if gaps else None
        )
        return llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)

    return generate


def vllm(model: str, dtype: str, max_num_seqs: int) -> Generate:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype=dtype,
        max_num_seqs=max_num_seqs,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], num_tokens: int, gaps: bool) -> list[Any]:
        params = SamplingParams(
            temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, logprobs=2 if gaps else None
        )
        return llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    return generate


ENGINES = {"ours": ours, "vllm": vllm}


def gaps_of(output: Any) -> list[float]:
    """For each token, the best one's logprob less the next one's, which is the difference of their logits."""
    gaps = []
    for entries in output.logprobs:
        best, second = sorted((entry.logprob for entry in entries.values()), reverse=True)[:2]
        gaps.append(best - second)
    return gaps


def answer(generate: Generate, request: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    outputs = [made.outputs[0] for made in generate(request["prompts"], request["max_tokens"], request["gaps"])]
    seconds = time.perf_counter() - started
    reply: dict[str, Any] = {"seconds": seconds, "token_ids": [list(output.token_ids) for output in outputs]}
    if request["gaps"]:
        reply["gaps"] = [gaps_of(output) for output in outputs]
    return reply


def main(argv: list[str] | None = None) -> int:
    name, model, dtype, threads, max_num_seqs = sys.argv[1:] if argv is None else argv
    # The engines log to stdout; only replies may go there.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch

    started = time.perf_counter()
    torch.set_num_threads(int(threads))
    generate = ENGINES[name](model, dtype, int(max_num_seqs))
    print(
        json.dumps({"ready": name, "seconds": time.perf_counter() - started, "torch": torch.__version__}), file=replies
    )
    for line in sys.stdin:
        print(json.dumps(answer(generate, json.loads(line))), file=replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
