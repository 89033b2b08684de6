"""Small random models of several families, written by transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from support.vocabularies import byte_level_tokenizer, write_tokenizer

VOCAB_SIZE, NUM_LAYERS = 420, 3
_SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": NUM_LAYERS}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}

NATIVE: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, gelu": {"model_type": "llama", "hidden_act": "gelu"},
    "llama, gelu by tanh": {"model_type": "llama", "hidden_act": "gelu_pytorch_tanh"},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 24},
    "mistral, window": {"model_type": "mistral", "sliding_window": 11},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, window in two layers": {"model_type": "qwen2", **_QWEN_WINDOW},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3, window in two layers": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True, **_QWEN_WINDOW},
    "qwen3, biases and yarn": {
        "model_type": "qwen3",
        "head_dim": 16,
        "attention_bias": True,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0},
    },
}
"""Configurations that have a model class of ours."""

ADAPTED: dict[str, dict[str, Any]] = {
    "gemma3, window in two layers": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64},
    "gemma2, soft caps": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 9, "attn_logit_softcapping": 2.0},
    "gpt_neox": {"model_type": "gpt_neox"},
    "phi3, window": {"model_type": "phi3", "sliding_window": 12},
    "mixtral, four experts": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None},
}
"""Configurations that run through transformers."""


def write_model(directory: Path, config: dict[str, Any], *, seed: int = 0, spread: float = 0.15) -> Path:
    """A model directory with tokenizer. No bias or norm is trivial, and logits lie well apart.

    Args:
        spread: standard deviation of the weights.
    """
    torch.manual_seed(seed)
    config = _SIZES | _HEADS | {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": None} | config
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.add_(torch.randn_like(param) * 0.2) if param.ndim == 1 else param.normal_(std=spread)
            if "embed_tokens" in name or "wte" in name:
                param.normal_(std=0.3)
    write_tokenizer(directory, byte_level_tokenizer(VOCAB_SIZE))
    model.save_pretrained(directory)
    return directory


def copy_with_config(model: Path, target: Path, changes: dict, without: Iterable[str] = ()) -> Path:
    """A model directory ``target`` with the weights of ``model``; keys of its config.json changed, or left out."""
    config = json.loads((model / "config.json").read_text()) | changes
    for key in without:
        del config[key]
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").symlink_to(model / "model.safetensors")
    return target
