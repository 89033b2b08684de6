#!/usr/bin/env python3
"""Train the small demo language model that is shipped as package data.

The default values are the recipe of the shipped checkpoint:

    python tools/train_demo_model.py --output vllm_ext/assets/demo_model

On a machine that is busy with other work, set OMP_WAIT_POLICY=passive in the environment: otherwise the
threads burn the cores' time with waiting for each other, and a run can take many times as long. So it does on a
processor without products of bfloat16: half a day, where it is half an hour.

The corpus file can be made again with make_demo_corpus.py.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import lzma
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_llama import Llama, Shape
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from tqdm import tqdm

DEFAULT_CORPUS = Path(__file__).resolve().parent / "demo_corpus" / "austen.txt.xz"
END_OF_TEXT = "<|endoftext|>"
HELD_OUT_SHARE = 0.04
SAMPLE_PROMPT = "Emma looked at her father, and"

Corpus = dict[str, list[list[str]]]
"""Title -> chapters -> paragraphs."""


@dataclass(frozen=True)
class Recipe:
    """Optimisation settings.

    A step sees ``batch_tokens`` tokens: in windows of ``short`` tokens for the first ``short_share`` of the
    steps, because these are faster, and in windows of the model's whole context after that.
    """

    steps: int = 2800
    batch_tokens: int = 4096
    short: int = 128
    short_share: float = 0.7
    matrix_lr: float = 5e-3
    vector_lr: float = 1.2e-2
    warmup: int = 100
    weight_decay: float = 0.1
    dropout: float = 0.1
    clip: float = 1.0
    seed: int = 0


# ---- Corpus ----


def read_corpus(path: Path) -> tuple[Corpus, str]:
    """Return the corpus and the SHA-256 of its uncompressed text."""
    raw = lzma.decompress(path.read_bytes())
    corpus: Corpus = {}
    chapters: list[list[str]] = []
    for line in raw.decode("utf-8").splitlines():
        if line.startswith("# "):
            chapters = corpus.setdefault(line[2:], [])
        elif line.startswith("## ") and corpus:
            chapters.append([])
        elif not chapters:
            raise ValueError(f"{path}: {line[:40]!r} belongs to no chapter")
        elif line:
            chapters[-1].append(line)
    return corpus, hashlib.sha256(raw).hexdigest()


def split_held_out(corpus: Corpus, share: float = HELD_OUT_SHARE) -> tuple[list[str], list[str]]:
    """Split off the last ``share`` of each novel's characters, at a paragraph boundary.

    Both results are documents (chapters or parts of them), paragraphs separated by one newline.
    """
    train, held_out = [], []
    for chapters in corpus.values():
        limit = (1 - share) * sum(len(p) for chapter in chapters for p in chapter)
        seen = 0
        for chapter in chapters:
            first, last = [], []
            for paragraph in chapter:
                (first if seen < limit else last).append(paragraph)
                seen += len(paragraph)
            train += ["\n".join(first)] if first else []
            held_out += ["\n".join(last)] if last else []
    return train, held_out


# ---- Tokenizer ----


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer; id 0 is the end-of-text token, and encoding adds no token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    """Return one stream of token ids, with an end-of-text token before each document and at the end."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = [end]
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids += [*encoding.ids, end]
    return torch.tensor(ids)


# ---- Training and evaluation ----


def windows(stream: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield windows of ``size + 1`` ids for ever; each epoch visits the stream once, newly divided."""
    while True:
        offset = int(torch.randint(min(size, len(stream) - size), (), generator=generator))
        starts = torch.arange(offset, len(stream) - size, size)
        for i in torch.randperm(len(starts), generator=generator):
            yield stream[starts[i] : starts[i] + size + 1]


def batches(stream: Tensor, context: int, recipe: Recipe) -> Iterator[Tensor]:
    """Yield the steps' batches, (windows, window size + 1) ids each."""
    if len(stream) <= context:
        raise ValueError(f"the corpus has only {len(stream)} tokens")
    generator = torch.Generator().manual_seed(recipe.seed)
    short_steps = int(recipe.steps * recipe.short_share)
    for size, steps in ((recipe.short, short_steps), (context, recipe.steps - short_steps)):
        source = windows(stream, size, generator)
        for _ in range(steps):
            yield torch.stack([next(source) for _ in range(recipe.batch_tokens // size)])


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the factor of the peak rate: a linear warm-up, then a linear decay to zero."""
    return min((step + 1) / recipe.warmup, (recipe.steps - step) / max(recipe.steps - recipe.warmup, 1))


def make_optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the embedding and the norms' gains."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    groups = [{"params": [model.embed_tokens.weight], "weight_decay": recipe.weight_decay}, {"params": gains}]
    adam = torch.optim.AdamW(groups, lr=recipe.vector_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adam]


def keep_freed_memory() -> None:
    """Tell glibc, if this is one, to keep big freed blocks; clearing new pages costs a third of a step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**30)


def train(model: Llama, stream: Tensor, context: int, recipe: Recipe) -> None:
    """Train ``model`` in place on the id stream, in bfloat16 products with float32 weights."""
    optimizers = make_optimizers(model, recipe)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: learning_rate(step, recipe)) for o in optimizers]
    keep_freed_memory()
    model.train()
    progress = tqdm(batches(stream, context, recipe), desc="train", unit="step", total=recipe.steps)
    for step, batch in enumerate(progress):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for part in (*optimizers, *schedulers):
            part.step()
        model.zero_grad()
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


@torch.inference_mode()
def bits_per_byte(model: Llama, tokenizer: Tokenizer, documents: list[str], context: int) -> float:
    """Return the model's bits per UTF-8 byte of ``documents``, in float32.

    The stream is cut into windows of ``context`` that do not see one another. The predictions of the
    end-of-text tokens count in the bits, but not in the bytes.
    """
    stream = encode(tokenizer, documents)
    nats = 0.0
    for start in tqdm(range(0, len(stream) - 1, context), desc="evaluate", unit="window"):
        ids = stream[start : start + context + 1]
        nats += F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(d.encode()) for d in documents)


@torch.inference_mode()
def sample(model: Llama, tokenizer: Tokenizer, prompt: str, tokens: int, temperature: float = 0.8) -> str:
    """Return ``prompt`` continued by ``tokens`` sampled tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = tokenizer.encode(prompt).ids
    for _ in range(tokens):
        logits = model(torch.tensor([ids]))[0, -1] / temperature
        ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
    return tokenizer.decode(ids)


# ---- The Hugging Face directory ----

README = """\
# Demo model

A {parameters:,}-parameter Llama ({layers} layers, {heads} query heads over {kv_heads} key-value heads,
hidden size {hidden}, context {context} tokens) with a byte-level BPE vocabulary of {vocab} entries. It
continues English prose in the manner of Jane Austen, and knows nothing else: it is here so that the package
can be tried and tested without a download. Weights are stored in float16, to be computed in float32.

- Trained from nothing by `tools/train_demo_model.py --output vllm_ext/assets/demo_model`; the script's
  default values are the whole recipe.
- Corpus: the six novels Jane Austen (1775-1817) published or left complete, as in
  `tools/demo_corpus/austen.txt.xz`, in the public domain. The weights are under this project's licence.
- Held out: the last {share:.0%} of each novel, never trained on: **{bits:.4f} bits per byte** in float32 with
  the stored weights.
- Training took {seconds:.0f} seconds of wall time ({steps} steps, seed {seed}) with two threads on a machine
  with 2 CPU cores. It needs about 20 minutes of processor time, so two idle cores should take about 10
  minutes; the rest, if any, went to other work on the machine.
- Prompts need no beginning-of-text token, and the tokenizer adds none. `{eot}` (id 0) stands between
  chapters only.

The same figures are in `training.json`. A sample at temperature 0.8, the prompt included:

> {sample}
"""


def model_config(s: Shape) -> dict[str, Any]:
    """Return the contents of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "max_position_embeddings": s.context,
        "hidden_act": "silu",
        "rms_norm_eps": s.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": s.rope_theta},
        "rope_theta": s.rope_theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_model(folder: Path, model: Llama, tokenizer: Tokenizer, shape: Shape) -> None:
    """Write the configuration, the tokenizer and the float16 weights into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model_config(shape))
    sampling = {"do_sample": True, "temperature": 0.8, "bos_token_id": 0, "eos_token_id": 0}
    write_json(folder / "generation_config.json", sampling)
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.context,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", names)
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {f"model.{name}": w.detach().half().contiguous() for name, w in model.named_parameters()}
    # Not save_file(), which leaves the file unreadable for other users.
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def write_records(folder: Path, record: dict[str, Any], shape: Shape, text: str) -> None:
    """Write training.json and README.md, with ``text`` as the sample, into ``folder``."""
    write_json(folder / "training.json", record)
    bits = record["held_out_bits_per_byte"]
    sizes = asdict(shape) | record
    quoted = text.replace("\n", "\n>\n> ")
    readme = README.format(**sizes, bits=bits, share=HELD_OUT_SHARE, eot=END_OF_TEXT, sample=quoted)
    (folder / "README.md").write_text(readme, encoding="utf-8")


# ---- Command line ----


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate and write the model; return the record of the run."""
    shape, recipe = Shape(), Recipe(steps=args.steps, seed=args.seed)
    begin = time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    corpus, digest = read_corpus(args.corpus)
    train_texts, held_out = split_held_out(corpus)
    tokenizer = train_tokenizer(train_texts, shape.vocab)
    model = Llama(shape, recipe.dropout)
    train(model, encode(tokenizer, train_texts), shape.context, recipe)
    with torch.no_grad():  # what is evaluated is what is stored
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    bits = bits_per_byte(model, tokenizer, held_out[: args.eval_chapters], shape.context)
    record = {
        "held_out_bits_per_byte": round(bits, 5),
        "steps": recipe.steps,
        "seed": recipe.seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus_sha256": digest,
    }
    write_model(args.output, model, tokenizer, shape)
    write_records(args.output, record, shape, sample(model, tokenizer, SAMPLE_PROMPT, 80))
    return record


def positive(text: str) -> int:
    """Return ``text`` as an integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def parse_arguments() -> argparse.Namespace:
    """Parse and check the command line; exit with a message if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--output", type=Path, metavar="DIR", required=True, help="folder to write the model to")
    option("--corpus", type=Path, metavar="FILE", default=DEFAULT_CORPUS, help="the corpus (.txt.xz)")
    option("--steps", type=positive, default=Recipe.steps, help="default: %(default)s")
    option("--seed", type=int, default=Recipe.seed, help="default: %(default)s")
    option("--threads", type=positive, default=2, help="default: %(default)s")
    option("--eval-chapters", type=positive, metavar="N", help="evaluate only the first N held-out parts")
    args = parser.parse_args()
    if not args.corpus.is_file():
        parser.error(f"no such file: {args.corpus}")
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"not a folder: {args.output}")
    return args


def main() -> None:
    """Run the command line; the last line on stdout is the record of the training as JSON."""
    args = parse_arguments()
    try:
        print(json.dumps(run(args)))
    except (ValueError, OSError, lzma.LZMAError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
