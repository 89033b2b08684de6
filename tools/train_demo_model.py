#!/usr/bin/env python3
"""Train the small demo language model that is shipped as package data.

The default values are the recipe of the shipped checkpoint:

    python tools/train_demo_model.py --output vllm_ext/assets/demo_model

On a machine that is busy with other work, set OMP_WAIT_POLICY=passive in the environment: otherwise the
threads burn the cores' time with waiting for each other, and a run can take many times as long.

The corpus file can be made again from the Debian package that carries the novels:

    apt-get download r-cran-janeaustenr
    python tools/train_demo_model.py --from-deb r-cran-janeaustenr_1.0.0-1_all.deb
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import hashlib
import io
import json
import lzma
import math
import re
import struct
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from tqdm import tqdm

DEFAULT_CORPUS = Path(__file__).resolve().parent / "demo_corpus" / "austen.txt.xz"
END_OF_TEXT = "<|endoftext|>"
HELD_OUT_SHARE = 0.04
SAMPLE_PROMPT = "Emma looked at her father, and"

# Name in the R package -> title, in the order of publication.
NOVELS = {
    "sensesensibility": "Sense and Sensibility",
    "prideprejudice": "Pride and Prejudice",
    "mansfieldpark": "Mansfield Park",
    "emma": "Emma",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
}

Corpus = dict[str, list[list[str]]]
"""Title -> chapters -> paragraphs."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; ``head_dim`` times ``heads`` need not be ``hidden``."""

    vocab: int = 2048
    hidden: int = 192
    intermediate: int = 480
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


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


# ---- Corpus: from the Debian package to plain paragraphs ----


class RReader:
    """Reader of R's XDR serialisation (versions 2 and 3), for the few types that data files use."""

    def __init__(self, data: bytes) -> None:
        if data[:2] != b"X\n":
            raise ValueError("not R's XDR serialisation")
        self.data, self.pos, self.symbols = data, 2, []
        version, _, _ = self.integer(), self.integer(), self.integer()
        if version == 3:
            self.string()  # the name of the native encoding

    def integer(self) -> int:
        """Read one big-endian 32-bit integer."""
        self.pos += 4
        return struct.unpack_from(">i", self.data, self.pos - 4)[0]

    def string(self) -> str:
        """Read a length and as many bytes; a missing value (length -1) is an empty string."""
        size = max(self.integer(), 0)
        self.pos += size
        return self.data[self.pos - size : self.pos].decode("utf-8")

    def item(self) -> Any:
        """Read one object: a vector becomes a list, or (list, attributes) if it has attributes."""
        flags = self.integer()
        kind = flags & 0xFF
        if kind == 254:  # NULL
            return None
        if kind == 255:  # a symbol seen before
            return self.symbols[(flags >> 8 or self.integer()) - 1]
        if kind == 1:  # a symbol
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == 2:  # a pair list, here always with tags
            return self.pairs(flags)
        if kind == 9:
            return self.string()
        if kind not in (10, 13, 16, 19):  # logical, integer, character, list
            raise ValueError(f"R object type {kind} is not supported")
        simple = kind in (10, 13)
        values = [self.integer() if simple else self.item() for _ in range(self.integer())]
        return (values, self.item()) if flags & 0x200 else values

    def pairs(self, flags: int) -> dict[str, Any]:
        """Read a pair list, whose first node's flags are given, as a dictionary."""
        if flags & 0x200:
            self.item()  # attributes of the node itself
        tag = self.item() if flags & 0x400 else ""
        pairs = {tag: self.item()}
        return pairs | (self.item() or {})


def deb_files(deb: Path, names: tuple[str, ...]) -> list[bytes]:
    """Return the contents of the files of a Debian package whose paths end in ``names``."""
    raw = deb.read_bytes()
    if raw[:8] != b"!<arch>\n":
        raise ValueError(f"{deb} is not a Debian package")
    pos = 8
    while pos + 60 <= len(raw):
        name, size = raw[pos : pos + 16].decode().strip(), int(raw[pos + 48 : pos + 58])
        pos += 60
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(raw[pos : pos + size])) as tar:
                found = {end: m for m in tar.getmembers() for end in names if m.name.endswith(end)}
                missing = [end for end in names if end not in found]
                if missing:
                    raise ValueError(f"{deb} has no {', '.join(missing)}")
                return [tar.extractfile(found[end]).read() for end in names]  # type: ignore[union-attr]
        pos += size + size % 2
    raise ValueError(f"{deb} has no data archive")


def read_deb(deb: Path) -> dict[str, list[str]]:
    """Return the text lines of each novel, by its name in the R package."""
    folder = "janeaustenr/data/Rdata"
    index, database = deb_files(deb, (f"{folder}.rdx", f"{folder}.rdb"))
    (variables, *_), _ = RReader(gzip.decompress(index)).item()
    places, attributes = variables
    novels = {}
    for name, (start, size) in zip(attributes["names"], places, strict=True):
        # Each chunk begins with its uncompressed length in four bytes.
        novels[name] = RReader(zlib.decompress(database[start + 4 : start + size])).item()
    return novels


def clean(lines: list[str]) -> list[list[str]]:
    """Re-flow the lines of one novel into chapters of paragraphs, without what is not the novel's text."""
    chapters: list[list[str]] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        text = " ".join(block.replace("_", "").replace("\u00a3", "L").split())
        if re.fullmatch(r"chapter [0-9ivxlc]+\.?", text, re.IGNORECASE):
            chapters.append([])
        elif re.fullmatch(r"finis|the end|a note on the text", text, re.IGNORECASE):
            break
        elif chapters and text and not re.match(r"[\[*]|\(End of volume|volume [ivx]+$", text, re.IGNORECASE):
            chapters[-1].append(text.replace("*", ""))
    return [chapter for chapter in chapters if chapter]


def write_corpus(deb: Path, path: Path) -> None:
    """Write the corpus file: ``# title`` and ``## Chapter n`` lines, every other line one paragraph."""
    novels = read_deb(deb)
    if missing := NOVELS.keys() - novels.keys():
        raise ValueError(f"{deb} has no {', '.join(sorted(missing))}")
    out = []
    for name, title in NOVELS.items():
        out.append(f"# {title}")
        for number, chapter in enumerate(clean(novels[name]), 1):
            out += [f"## Chapter {number}", *chapter]
    text = "\n".join(out) + "\n"
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


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


# ---- Model: Llama with grouped-query attention, tied embeddings, names as in its checkpoints ----


class Attention(nn.Module):
    """Causal self-attention with rotary positions; ``heads / kv_heads`` query heads share a KV head."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map ``x`` (batch, time, hidden) to the same shape; ``cos`` and ``sin`` are (time, head_dim)."""
        s, (batch, time, _) = self.shape, x.shape
        # One product is faster than three; the weights stay apart for the optimiser and the file.
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = F.linear(x, weight).view(batch, time, -1, s.head_dim).transpose(1, 2)
        qk, v = qkv.split([s.heads + s.kv_heads, s.kv_heads], dim=1)
        half1, half2 = qk.chunk(2, dim=-1)
        qk = qk * cos + torch.cat([-half2, half1], dim=-1) * sin
        q, k = qk.split([s.heads, s.kv_heads], dim=1)
        out = self.attend(q, k, v).view(batch, s.heads, time, s.head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from ``q`` (batch, heads, time, dim) to ``k`` and ``v`` (batch, kv_heads, time, dim).

        Returns (batch, kv_heads, heads / kv_heads * time, dim). Plain products are about twice as fast
        here as ``scaled_dot_product_attention``, whose CPU kernel is slow for small heads in bfloat16.
        """
        batch, kv_heads, time, dim = k.shape
        mask = torch.full((time, time), -torch.inf, dtype=q.dtype).triu(1)
        scores = q.reshape(batch, kv_heads, -1, dim) @ k.mT * dim**-0.5
        scores = scores.view(batch, kv_heads, -1, time, time) + mask
        return scores.softmax(-1).view(batch, kv_heads, -1, time) @ v


class MLP(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.down_proj = nn.Linear(s.intermediate, s.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., hidden) to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer: attention, then the feed-forward network."""

    def __init__(self, s: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden, s.norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, s.norm_eps)
        self.mlp = MLP(s)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map ``x`` (batch, time, hidden) to the same shape."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """The language model; parameters are float32."""

    def __init__(self, s: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Block(s, dropout) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.hidden, s.norm_eps)
        self.dropout = nn.Dropout(dropout)
        inverse = s.rope_theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angles = torch.outer(torch.arange(s.context), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=0.02 if "embed" in name else s.hidden**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (batch, time) to logits (batch, time, vocab)."""
        x = self.dropout(self.embed_tokens(ids))
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        if torch.is_autocast_enabled("cpu"):
            cos, sin = cos.bfloat16(), sin.bfloat16()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


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
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: learning_rate(step, recipe)) for o in optimizers
    ]
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--output", type=Path, metavar="DIR", help="folder to write the model to")
    option("--corpus", type=Path, metavar="FILE", default=DEFAULT_CORPUS, help="the corpus (.txt.xz)")
    option("--from-deb", type=Path, metavar="FILE", help="make the corpus file from this package first")
    option("--steps", type=positive, default=Recipe.steps, help="default: %(default)s")
    option("--seed", type=int, default=Recipe.seed, help="default: %(default)s")
    option("--threads", type=positive, default=2, help="default: %(default)s")
    option("--eval-chapters", type=positive, metavar="N", help="evaluate only the first N held-out parts")
    args = parser.parse_args()
    if args.output is None and args.from_deb is None:
        parser.error("give --output, --from-deb or both")
    for path in (args.from_deb, args.corpus if args.from_deb is None else None):
        if path is not None and not path.is_file():
            parser.error(f"no such file: {path}")
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        parser.error(f"not a folder: {args.output}")
    return args


def main() -> None:
    """Run the command line; the last line on stdout is the record of the training as JSON."""
    args = parse_arguments()
    try:
        if args.from_deb is not None:
            write_corpus(args.from_deb, args.corpus)
        if args.output is not None:
            print(json.dumps(run(args)))
    except (ValueError, OSError, lzma.LZMAError, tarfile.TarError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
