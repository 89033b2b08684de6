#!/usr/bin/env python3
"""How the embedded engine's cost grows: with requests at once, with the context, and its memory with requests.

    python tools/bench_growth.py /tmp/reference --plot tools/growth.png

Throughput over the batch: prompts of 20 to 100 random token ids. Over the context: ``--max-tokens`` new tokens after a
prompt of so many, of which the time for the prompt is taken off, so that the figure is that of decoding. Memory: the
peak of a whole process for each number of requests, each with ``--memory-context`` tokens of prompt, and what of it
came after the engine stood. A model that is made for fewer positions than the longest context is given more for this;
its text is random anyway. Progress goes to stderr, the results to stdout as JSON. ``--plot`` draws them, with
matplotlib: the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_engine import describe_machine, positive, random_prompts, read_vocab_size, report, require_model

BATCHES = [1, 2, 4, 8, 16, 32, 64]
CONTEXTS = [128, 256, 512, 1024, 2048, 4096]
CONTEXT_BATCHES = [1, 8]

MEMORY_OF_REQUESTS = """
import json, random, sys
from vllm_ext import LLM, SamplingParams
def kib(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[name].split()[0])
model, requests, context, vocabulary = sys.argv[1], *map(int, sys.argv[2:])
llm = LLM(model=model, dtype="float32", max_num_seqs=requests)
before = kib("VmRSS")
draw = random.Random(0)
prompts = [{"prompt_token_ids": [draw.randrange(vocabulary) for _ in range(context)]} for _ in range(requests)]
llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
print(json.dumps({"before_mb": before / 1024, "peak_mb": kib("VmHWM") / 1024}))
"""


class Engine:
    """The engine, asked for nothing but times."""

    def __init__(self, model: Path, max_num_seqs: int) -> None:
        from vllm_ext import LLM, SamplingParams

        self._params = SamplingParams
        # Repeats of one prompt must not find their prefixes.
        self._llm = LLM(model=model, dtype="float32", max_num_seqs=max_num_seqs, enable_prefix_caching=False)

    def seconds(self, prompts: list[list[int]], max_tokens: int) -> float:
        params = self._params(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        started = time.perf_counter()
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
        seconds = time.perf_counter() - started
        if any(len(output.outputs[0].token_ids) != max_tokens for output in outputs):
            raise RuntimeError(f"an output has not {max_tokens} tokens")
        return seconds

    def close(self) -> None:
        self._llm.close()


def over_batch(engine: Engine, batches: list[int], vocabulary: int, max_tokens: int, repeats: int) -> list[Any]:
    rows = []
    for batch in batches:
        engine.seconds(random_prompts(batch, vocabulary, seed=batch), 2)
        runs = [
            engine.seconds(random_prompts(batch, vocabulary, seed=1000 * batch + repeat), max_tokens)
            for repeat in range(repeats)
        ]
        rows.append({"batch": batch, "tokens_per_s": round(batch * max_tokens / statistics.median(runs), 1)})
        report(f"batch {batch}: {rows[-1]['tokens_per_s']} tokens/s")
    return rows


def over_context(
    engine: Engine, contexts: list[int], batches: list[int], vocabulary: int, max_tokens: int, repeats: int
) -> list[Any]:
    """Decoding and reading prompts, with so many tokens of context at the end."""
    rows = []
    for batch in batches:
        for context in contexts:
            length = context - max_tokens
            prompts = [[(7 * position + row) % vocabulary for position in range(length)] for row in range(batch)]
            prefill = statistics.median(engine.seconds(prompts, 1) for _ in range(repeats))
            whole = statistics.median(engine.seconds(prompts, max_tokens) for _ in range(repeats))
            # On a busy machine the difference of two times can be anything.
            decode = max(whole - prefill, 1e-9)
            rate = round(batch * (max_tokens - 1) / decode, 1)
            prefill_rate = round(batch * length / prefill, 1)
            rows.append({"batch": batch, "context": context, "tokens_per_s": rate, "prompt_tokens_per_s": prefill_rate})
            report(f"batch {batch}, context {context}: {rate} tokens/s, of the prompt {prefill_rate}")
    return rows


def over_requests(model: Path, batches: list[int], context: int, vocabulary: int) -> list[Any]:
    """Peak memory of a process for each number of requests."""
    rows = []
    for batch in batches:
        arguments = [str(model), str(batch), str(context), str(vocabulary)]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY_OF_REQUESTS, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the process with {batch} requests ended with code {done.returncode}:\n{done.stderr}")
        measured = json.loads(done.stdout.splitlines()[-1])
        grown = max(0.0, measured["peak_mb"] - measured["before_mb"])
        rows.append({"requests": batch, "peak_mb": round(measured["peak_mb"], 1), "grown_mb": round(grown, 1)})
        report(f"{batch} requests: peak {measured['peak_mb']:.0f} MB")
    return rows


def with_positions(model: Path, positions: int, folder: Path) -> Path:
    """The model itself, or a copy below ``folder`` that has at least so many positions."""
    config = json.loads((model / "config.json").read_text())
    if config["max_position_embeddings"] >= positions:
        return model
    copy = folder / "model"
    shutil.copytree(model, copy)
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    return copy


def draw(results: dict[str, Any], file: Path) -> None:
    """Three small pictures beside each other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (batch, context, memory) = pyplot.subplots(1, 3, figsize=(10, 3), layout="constrained")
    rows = results["batch"]
    batch.plot([row["batch"] for row in rows], [row["tokens_per_s"] for row in rows], marker="o")
    batch.set(xscale="log", yscale="log", xlabel="requests at once", ylabel="tokens/s", title="Throughput")
    for size in sorted({row["batch"] for row in results["context"]}):
        rows = [row for row in results["context"] if row["batch"] == size]
        context.plot(
            [row["context"] for row in rows], [row["tokens_per_s"] for row in rows], marker="o", label=f"batch {size}"
        )
    context.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="tokens/s", title="Decoding")
    context.legend()
    rows = results["memory"]
    memory.plot([row["requests"] for row in rows], [row["peak_mb"] for row in rows], marker="o")
    memory.set(xlabel="requests at once", ylabel="MB", ylim=(0, None), title="Peak memory of the process")
    for axes, ticks in ((batch, results["batch"]), (context, results["context"])):
        name = "batch" if axes is batch else "context"
        values = sorted({row[name] for row in ticks})
        axes.set_xticks(values, labels=[str(value) for value in values])
        axes.minorticks_off()
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(arguments.threads)
    vocabulary = read_vocab_size(arguments.model)
    max_tokens, repeats = arguments.max_tokens, arguments.repeats
    with tempfile.TemporaryDirectory() as folder:
        model = with_positions(arguments.model, max(arguments.context), Path(folder))
        memory = over_requests(model, arguments.batch, arguments.memory_context, vocabulary)
        engine = Engine(model, max([*arguments.batch, *arguments.context_batch]))
        batch = over_batch(engine, arguments.batch, vocabulary, max_tokens, repeats)
        context = over_context(engine, arguments.context, arguments.context_batch, vocabulary, max_tokens, repeats)
        engine.close()
    return {
        "machine": describe_machine(arguments.threads),
        "max_tokens": max_tokens,
        "repeats": repeats,
        "memory_context": arguments.memory_context,
        "batch": batch,
        "context": context,
        "memory": memory,
    }


def has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="How cost grows.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model directory")
    parser.add_argument("--batch", type=positive, nargs="+", default=BATCHES, help="requests at once")
    parser.add_argument("--context", type=positive, nargs="+", default=CONTEXTS, help="tokens, prompt and new ones")
    parser.add_argument("--context-batch", type=positive, nargs="+", default=CONTEXT_BATCHES)
    parser.add_argument("--memory-context", type=positive, default=512, help="tokens of prompt where memory counts")
    parser.add_argument("--max-tokens", type=positive, default=64, help="new tokens per prompt")
    parser.add_argument("--threads", type=positive, default=2, help="threads of torch")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw to this file")
    arguments = parser.parse_args(argv)
    require_model(parser, arguments.model)
    if min(arguments.context) <= arguments.max_tokens or arguments.max_tokens < 2:
        parser.error("--max-tokens takes at least 2, and less than each --context")
    if arguments.plot and not has_matplotlib():
        parser.error("--plot needs matplotlib: pip install 'vllm-ext[bench]'")
    results = run(arguments)
    print(json.dumps(results, indent=2))
    if arguments.plot:
        draw(results, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
