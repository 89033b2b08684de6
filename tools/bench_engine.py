#!/usr/bin/env python3
"""Time greedy generation of the embedded engine against transformers, in one run on one machine.

    python tools/make_checkpoint.py /tmp/reference
    python tools/bench_engine.py /tmp/reference --batch 1 16 64

Throughput: both engines generate for the same prompts (20 to 100 random token ids each), one after the other in
every repeat, and both make exactly ``--max-tokens`` tokens per prompt; the medians of the repeats are compared.
Start to first token: whole processes, from their start to their first generated token. Progress goes to stderr,
the results to stdout as JSON. The baseline needs the package transformers; ``--baseline none`` does without.
In float32 each result also says what share of the machine's roofline it is: see ``tools/roofline.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 20, 100

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts as token ids and a number of tokens, to that many new token ids for each prompt."""

OURS_FIRST_TOKEN = """
import sys
from vllm_ext import LLM, SamplingParams
llm = LLM(model=sys.argv[1], dtype=sys.argv[2])
ids = [int(token) for token in sys.argv[3].split(",")]
outputs = llm.generate([{"prompt_token_ids": ids}], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
print(outputs[0].outputs[0].token_ids[0], flush=True)
llm.close()
"""

BASELINE_FIRST_TOKEN = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
ids = torch.tensor([[int(token) for token in sys.argv[3].split(",")]])
made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0)
print(made[0, -1].item(), flush=True)
"""


class Timing(NamedTuple):
    """What one engine did in one repeat."""

    tokens_per_s: float
    token_ids: list[list[int]]


KV_CACHE_BYTES = 256 << 20
"""16384 tokens of the reference model, which the warm-up goes round once: a cache takes memory from the system as it is
first written, and that is no part of a step."""
WARM_UPS = 2
"""Generations at the largest batch before anything is timed."""


def ours(model: str, dtype: str, max_num_seqs: int) -> Generate:
    """The embedded engine on the platform that the settings choose."""
    from vllm_ext import LLM, SamplingParams

    llm = LLM(model=model, dtype=dtype, max_num_seqs=max_num_seqs, kv_cache_memory=KV_CACHE_BYTES)

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        outputs = llm.generate(list(prompts), params)
        return [output.outputs[0].token_ids for output in outputs]

    return generate


def transformers_baseline(model: str, dtype: str) -> Generate:
    """transformers' own generation loop, with the prompts padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    # Without an end-of-sequence token it makes max_new_tokens tokens, as ours does with ignore_eos.
    theirs.generation_config.eos_token_id = None

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = theirs.generate(ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
        return made[:, width:].tolist()

    return generate


def random_prompts(count: int, vocab_size: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    lengths = [draw.randint(MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS) for _ in range(count)]
    return [[draw.randrange(vocab_size) for _ in range(length)] for length in lengths]


def time_generation(name: str, generate: Generate, prompts: list[list[int]], num_tokens: int) -> Timing:
    """Generate once. RuntimeError where the engine made another number of tokens than it was asked for."""
    started = time.perf_counter()
    token_ids = generate(prompts, num_tokens)
    seconds = time.perf_counter() - started
    if any(len(ids) != num_tokens for ids in token_ids):
        counts = sorted({len(ids) for ids in token_ids})
        raise RuntimeError(f"{name} made {counts} tokens per prompt instead of {num_tokens}")
    return Timing(len(prompts) * num_tokens / seconds, token_ids)


def compare_throughput(
    engines: dict[str, Generate], batch: int, vocab_size: int, num_tokens: int, repeats: int
) -> dict[str, Any]:
    """Medians over the repeats, in which the engines take turns."""
    timings: dict[str, list[Timing]] = {name: [] for name in engines}
    for name, generate in engines.items():
        time_generation(name, generate, random_prompts(batch, vocab_size, seed=batch), 2)
    for repeat in range(repeats):
        prompts = random_prompts(batch, vocab_size, seed=1000 * batch + repeat)
        for name, generate in engines.items():
            timing = time_generation(name, generate, prompts, num_tokens)
            timings[name].append(timing)
            report(f"batch {batch}, repeat {repeat + 1}/{repeats}: {name} {timing.tokens_per_s:.1f} tokens/s")
    result: dict[str, Any] = {"batch": batch, "max_tokens": num_tokens}
    for name, runs in timings.items():
        result[f"{name}_tokens_per_s"] = round(statistics.median(run.tokens_per_s for run in runs), 2)
    if len(engines) == 2:
        first, second = timings.values()
        result["ratio"] = round(ratio_of_medians(first, second), 3)
        result["same_tokens"] = round(share_of_same_tokens(first, second), 4)
    return result


def ratio_of_medians(first: list[Timing], second: list[Timing]) -> float:
    """How many times as fast the first engine is."""
    first_rate, second_rate = (statistics.median(run.tokens_per_s for run in runs) for runs in (first, second))
    return first_rate / second_rate


def share_of_same_tokens(first: list[Timing], second: list[Timing]) -> float:
    """Share of positions with the same token: below 1 where nearly equal logits sent a sequence another way."""
    pairs = [
        (left, right)
        for run, other in zip(first, second, strict=True)
        for ids, other_ids in zip(run.token_ids, other.token_ids, strict=True)
        for left, right in zip(ids, other_ids, strict=True)
    ]
    return sum(left == right for left, right in pairs) / len(pairs)


def compare_first_token(
    scripts: dict[str, str], model: str, dtype: str, prompt: list[int], threads: int, repeats: int
) -> dict[str, float]:
    """Median seconds from the start of a process to its first token."""
    seconds: dict[str, list[float]] = {name: [] for name in scripts}
    for repeat in range(repeats):
        for name, script in scripts.items():
            seconds[name].append(time_first_token(name, script, model, dtype, prompt, threads))
            report(f"first token, repeat {repeat + 1}/{repeats}: {name} {seconds[name][-1]:.2f} s")
    result = {f"{name}_s": round(statistics.median(values), 3) for name, values in seconds.items()}
    if len(scripts) == 2:
        first, second = (statistics.median(values) for values in seconds.values())
        result["ratio"] = round(first / second, 3)
    return result


def time_first_token(name: str, script: str, model: str, dtype: str, prompt: list[int], threads: int) -> float:
    """Seconds until the process prints its token. RuntimeError with its last words where it does not."""
    command = [sys.executable, "-c", script, model, dtype, ",".join(map(str, prompt))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        token = process.stdout.readline().strip()
        seconds = time.perf_counter() - started
        errors = process.communicate()[1]
    if process.returncode or not token.isdigit():
        raise RuntimeError(f"{name} ended with code {process.returncode} before its first token:\n{errors}")
    return seconds


def describe_machine(threads: int) -> dict[str, Any]:
    import torch

    return {
        "cpu": cpu_model_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": threads,
    }


def cpu_model_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def add_shares_of_roofline(
    throughput: list[dict[str, Any]], model: Path, dtype: str, max_tokens: int, repeats: int
) -> None:
    """To each result, what share of this machine's roofline our own rate is."""
    import torch
    from roofline import Model, Roofline, share

    with torch.inference_mode():
        roofline = Roofline(Model.read(model, getattr(torch, dtype)), repeats)
        for entry in throughput:
            bounds = roofline.bounds(entry["batch"], (MIN_PROMPT_TOKENS + MAX_PROMPT_TOKENS) / 2, max_tokens)
            entry |= share(bounds, entry["ours_tokens_per_s"])


def has_transformers() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements, as what is printed."""
    import torch

    torch.set_num_threads(arguments.threads)
    model, dtype = str(arguments.model), arguments.dtype
    vocab_size = read_vocab_size(arguments.model)
    engines: dict[str, Generate] = {"ours": ours(model, dtype, max(arguments.batch))}
    scripts = {"ours": OURS_FIRST_TOKEN}
    if arguments.baseline == "transformers":
        engines["transformers"] = transformers_baseline(model, dtype)
        scripts["transformers"] = BASELINE_FIRST_TOKEN
    for seed in range(WARM_UPS):
        for generate in engines.values():
            generate(random_prompts(max(arguments.batch), vocab_size, seed), arguments.max_tokens)
    throughput = [
        compare_throughput(engines, batch, vocab_size, arguments.max_tokens, arguments.repeats)
        for batch in arguments.batch
    ]
    if dtype != "float16":
        add_shares_of_roofline(throughput, arguments.model, dtype, arguments.max_tokens, arguments.repeats)
    (prompt,) = random_prompts(1, vocab_size, seed=0)
    return {
        "model": model,
        "dtype": dtype,
        "repeats": arguments.repeats,
        "machine": describe_machine(arguments.threads),
        "throughput": throughput,
        "first_token": compare_first_token(scripts, model, dtype, prompt, arguments.threads, arguments.repeats),
    }


def require_model(parser: argparse.ArgumentParser, model: Path) -> None:
    """End the program with a message unless ``model`` is a model directory."""
    if not (model / "config.json").is_file():
        parser.error(f"{model} is not a model directory: it has no config.json")


def read_vocab_size(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def medians_in_turn(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each function: medians of ``repeats`` turns after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Time the embedded engine.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model directory")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 16, 64], help="prompts at once")
    parser.add_argument("--max-tokens", type=positive, default=64, help="tokens to generate per prompt")
    parser.add_argument("--threads", type=positive, default=2, help="threads of torch")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--baseline", choices=["transformers", "none"], default="transformers")
    arguments = parser.parse_args(argv)
    require_model(parser, arguments.model)
    if arguments.baseline == "transformers" and not has_transformers():
        parser.error("the baseline needs transformers: pip install transformers, or give --baseline none")
    print(json.dumps(run(arguments), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
