#!/usr/bin/env python3
"""Write a random Llama checkpoint in Hugging Face layout: for benchmarks, tests and trying things out.

    python tools/make_checkpoint.py /tmp/reference
    python tools/make_checkpoint.py /tmp/tiny --hidden-size 64 --layers 2 --vocab-size 512 --shards 2

The default shape is the reference shape of the benchmarks (32 million parameters). The same options give the
same bytes. Weights are drawn so that activations keep a standard deviation near one at any size, and logits one
near four, which leaves few greedy choices between nearly equal logits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

END_OF_TEXT = "<|endoftext|>"
NUM_BASE_TOKENS = 257
"""The end-of-text token and one token for each byte."""
LETTERS = string.ascii_lowercase
LOGIT_STD = 4.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model; the defaults are the reference shape."""

    hidden_size: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    intermediate_size: int = 1408
    vocab_size: int = 8000
    max_position_embeddings: int = 2048
    tie: bool = False

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if name != "tie" and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes a positive number")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embeddings need an even number")
        if self.vocab_size < NUM_BASE_TOKENS:
            raise ValueError(f"vocab_size is {self.vocab_size}; the bytes and end of text are {NUM_BASE_TOKENS}")


def write_checkpoint(
    output: Path, shape: Shape, *, dtype: torch.dtype = torch.float32, seed: int = 0, shards: int = 1
) -> int:
    """Write the model directory ``output`` and return its number of parameters.

    Raises:
        ValueError: ``shards`` is not between 1 and the number of tensors.
        FileExistsError: ``output`` exists and is not an empty directory.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(shape, seed)}
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"{len(tensors)} tensors cannot be written in {shards} shards")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty directory")
    output.mkdir(parents=True, exist_ok=True)
    _write_json(output / "config.json", model_config(shape, dtype))
    _write_json(output / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    _write_json(output / "tokenizer_config.json", tokenizer_config(shape))
    make_tokenizer(shape.vocab_size).save(str(output / "tokenizer.json"))
    write_weights(output, tensors, shards)
    return sum(tensor.numel() for tensor in tensors.values())


def random_tensors(shape: Shape, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Checkpoint names and float32 weights."""
    generator = torch.Generator().manual_seed(seed)

    def linear(name: str, rows: int, columns: int, output_std: float = 1.0) -> tuple[str, Tensor]:
        weight = torch.randn(rows, columns, generator=generator) * (output_std / math.sqrt(columns))
        return f"{name}.weight", weight

    def norm(name: str) -> tuple[str, Tensor]:
        return f"{name}.weight", 1 + 0.1 * torch.randn(shape.hidden_size, generator=generator)

    # Tied embeddings are the output layer too, so they are scaled like one.
    yield linear("model.embed_tokens", shape.vocab_size, shape.hidden_size, LOGIT_STD)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield norm(f"{prefix}.input_layernorm")
        yield linear(f"{prefix}.self_attn.q_proj", shape.heads * shape.head_dim, shape.hidden_size)
        yield linear(f"{prefix}.self_attn.k_proj", shape.kv_heads * shape.head_dim, shape.hidden_size)
        yield linear(f"{prefix}.self_attn.v_proj", shape.kv_heads * shape.head_dim, shape.hidden_size)
        yield linear(f"{prefix}.self_attn.o_proj", shape.hidden_size, shape.heads * shape.head_dim)
        yield norm(f"{prefix}.post_attention_layernorm")
        yield linear(f"{prefix}.mlp.gate_proj", shape.intermediate_size, shape.hidden_size)
        yield linear(f"{prefix}.mlp.up_proj", shape.intermediate_size, shape.hidden_size)
        yield linear(f"{prefix}.mlp.down_proj", shape.hidden_size, shape.intermediate_size)
    yield norm("model.norm")
    if not shape.tie:
        yield linear("lm_head", shape.vocab_size, shape.hidden_size, LOGIT_STD)


def model_config(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tie,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": shape.max_position_embeddings,
    }


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly ``vocab_size`` tokens.

    Nothing is trained: the merges build all strings of lower-case letters, the short ones first.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = itertools.chain.from_iterable(itertools.product(LETTERS, repeat=n) for n in itertools.count(2))
    merged = ["".join(word) for word in itertools.islice(words, vocab_size - NUM_BASE_TOKENS)]
    vocabulary = {token: number for number, token in enumerate([END_OF_TEXT, *alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(word[:-1], word[-1]) for word in merged]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def write_weights(output: Path, tensors: dict[str, Tensor], shards: int) -> None:
    """One ``model.safetensors``, or consecutive tensors in ``shards`` files with an index."""
    if shards == 1:
        save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        chosen = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        save_file({name: tensors[name] for name in chosen}, output / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file_name)
    total_size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    _write_json(output / "model.safetensors.index.json", index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    shape = Shape()
    parser = argparse.ArgumentParser(
        description="Write a random Llama checkpoint.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="directory to write; must be empty")
    parser.add_argument("--hidden-size", type=int, default=shape.hidden_size)
    parser.add_argument("--layers", type=int, default=shape.layers)
    parser.add_argument("--heads", type=int, default=shape.heads)
    parser.add_argument("--kv-heads", type=int, default=shape.kv_heads)
    parser.add_argument("--head-dim", type=int, default=shape.head_dim)
    parser.add_argument("--intermediate-size", type=int, default=shape.intermediate_size)
    parser.add_argument("--vocab-size", type=int, default=shape.vocab_size, help="at least 257")
    parser.add_argument("--max-position-embeddings", type=int, default=shape.max_position_embeddings)
    parser.add_argument("--tie", action="store_true", help="use the embeddings as output layer too")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    parser.add_argument("--shards", type=int, default=1, help="number of safetensors files")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        shape = Shape(**{name: getattr(arguments, name) for name in Shape.__slots__})
        dtype = getattr(torch, arguments.dtype)
        count = write_checkpoint(arguments.output, shape, dtype=dtype, seed=arguments.seed, shards=arguments.shards)
    except (ValueError, OSError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.output}: {count / 1e6:.1f} M parameters, {arguments.dtype}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
