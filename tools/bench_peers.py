#!/usr/bin/env python3
"""Time vllm_ext and vLLM in turn, each in a process of its own with an environment of its own.

    tools/bench_peers.sh

makes vLLM's environment and the model, and calls this. Start-up does not count: both engines stand before the first
round, and each batch begins with a round that is not counted. Both get the same prompts (20 to 100 random token ids),
greedy, with exactly ``--max-tokens`` new tokens each. A last round, which is not timed, compares tokens: a sequence is
compared up to the position where vLLM's two best logits differ by less than DECIDED, because there either is right.
Progress goes to stderr, the results to stdout as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench_engine import WARM_UPS, describe_machine, positive, random_prompts, read_vocab_size, report, require_model

WORKER = Path(__file__).with_name("bench_peer_one.py")
DECIDED = {"float32": 1e-3, "float16": 0.1, "bfloat16": 1.0}
"""By dtype: about twice the largest error of transformers' logits for the reference model, against float32."""


class Peer:
    """One engine's processes. They stand still except in their turn: idle engines poll, and their threads spin.

    Raises:
        RuntimeError: it ended before it answered; its own words are on stderr.
    """

    def __init__(self, name: str, python: str, model: str, dtype: str, threads: int, max_num_seqs: int) -> None:
        self.name = name
        command = [python, str(WORKER), name, model, dtype, str(threads), str(max_num_seqs)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(name, threads),
            start_new_session=True,
        )
        self.started = self._read()
        self._stop()

    def ask(self, prompts: list[list[int]], max_tokens: int, gaps: bool = False) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens, "gaps": gaps}) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        self._stop()
        if counts := {len(ids) for ids in reply["token_ids"]} - {max_tokens}:
            raise RuntimeError(f"{self.name} made {sorted(counts)} tokens per prompt instead of {max_tokens}")
        return reply

    def close(self) -> None:
        """End it and what it started."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            report(f"{self.name} did not end by itself")
        self._signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        # Its threads stop one after another: the next engine begins when the last of them stands.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.close()
            raise RuntimeError(f"{self.name} ended with code {code}; what it said is above")
        return json.loads(line)


def environment(name: str, threads: int) -> dict[str, str]:
    """Variables of one engine: those that the script sets for vLLM alone have the prefix PEER_."""
    values = {key: value for key, value in os.environ.items() if not key.startswith("PEER_")}
    values["OMP_NUM_THREADS"] = str(threads)
    if name == "vllm":
        prefix = "PEER_"
        values |= {key.removeprefix(prefix): value for key, value in os.environ.items() if key.startswith(prefix)}
    return values


def compare(
    peers: list[Peer], batch: int, vocab_size: int, max_tokens: int, rounds: int, decided: float
) -> dict[str, Any]:
    """Medians over the rounds, in which the engines take turns in changing order; and whether their tokens agree where
    two logits are ``decided`` apart.
    """
    for peer in peers:
        peer.ask(random_prompts(batch, vocab_size, seed=batch), max_tokens)
    rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        prompts = random_prompts(batch, vocab_size, seed=1000 * batch + number)
        for peer in peers if number % 2 == 0 else peers[::-1]:
            rate = batch * max_tokens / peer.ask(prompts, max_tokens)["seconds"]
            rates[peer.name].append(rate)
            report(f"batch {batch}, round {number + 1}/{rounds}: {peer.name} {rate:.1f} tokens/s")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    prompts = random_prompts(batch, vocab_size, seed=1000 * batch + rounds)
    first, second = (peer.ask(prompts, max_tokens, gaps=peer.name == "vllm") for peer in peers)
    return {
        "batch": batch,
        "max_tokens": max_tokens,
        **{f"{name}_tokens_per_s": round(value, 2) for name, value in medians.items()},
        **{f"{name}_all": [round(value, 1) for value in values] for name, values in rates.items()},
        "ratio": round(medians["ours"] / medians["vllm"], 3),
        "tokens": agreement(first["token_ids"], second["token_ids"], second["gaps"], decided),
    }


def agreement(
    ours: list[list[int]], theirs: list[list[int]], gaps: list[list[float]], decided: float
) -> dict[str, Any]:
    """Greedy tokens against the reference's: which positions are decided, and which sequences differ at one."""
    num_decided, different = 0, 0
    for sequence, reference, margins in zip(ours, theirs, gaps, strict=True):
        for token, expected, margin in zip(sequence, reference, margins, strict=True):
            if margin < decided:
                break
            num_decided += 1
            if token != expected:
                different += 1
                break
    total = sum(map(len, theirs))
    return {"agree": not different, "different_sequences": different, "decided": round(num_decided / total, 4)}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    vocab_size = read_vocab_size(arguments.model)
    pythons = {"ours": sys.executable, "vllm": str(arguments.vllm_python)}
    peers: list[Peer] = []
    try:
        for name, python in pythons.items():
            peers.append(
                Peer(name, python, str(arguments.model), arguments.dtype, arguments.threads, max(arguments.batch))
            )
            report(f"{name} stands after {peers[-1].started['seconds']:.1f} s, torch {peers[-1].started['torch']}")
        for seed in range(WARM_UPS):
            for peer in peers:
                peer.ask(random_prompts(max(arguments.batch), vocab_size, seed), arguments.max_tokens)
        batches = [
            compare(peers, batch, vocab_size, arguments.max_tokens, arguments.rounds, DECIDED[arguments.dtype])
            for batch in arguments.batch
        ]
    finally:
        for peer in peers:
            peer.close()
    return {
        "machine": describe_machine(arguments.threads),
        "dtype": arguments.dtype,
        "load_at_end": os.getloadavg()[0],
        "rounds": arguments.rounds,
        "torch": {peer.name: peer.started["torch"] for peer in peers},
        "batches": batches,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Time vllm_ext and vLLM in turn.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model directory")
    parser.add_argument("--vllm-python", type=Path, required=True, help="the Python of vLLM's environment")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 16, 64], help="prompts at once")
    parser.add_argument("--max-tokens", type=positive, default=64, help="new tokens per prompt")
    parser.add_argument("--threads", type=positive, default=2, help="threads of either engine")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--dtype", choices=DECIDED, default="float32")
    arguments = parser.parse_args(argv)
    require_model(parser, arguments.model)
    if not os.access(arguments.vllm_python, os.X_OK):
        parser.error(f"{arguments.vllm_python} is not a Python: tools/bench_peers.sh makes the environment")
    print(json.dumps(run(arguments), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
