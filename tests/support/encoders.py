"""Small random encoders, written by transformers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from support.vocabularies import SAMPLE_TEXT, write_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 300
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
}
BERT = {"model_type": "bert", "type_vocab_size": 2, "pad_token_id": 0}
ROBERTA = {"model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1}
XLM_ROBERTA = {**ROBERTA, "model_type": "xlm-roberta"}

TEXTS = [
    *SAMPLE_TEXT[:3],
    "a",
    "",
    "the lazy dog jumps again",
    "naïve café and the quick brown fox " * 2,
]


@functools.cache
def wordpiece_tokenizer() -> Tokenizer:
    """WordPiece with [CLS] and [SEP] around a text, and between two, whose tokens are of two kinds. One for all, since
    training breaks ties by chance.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE_TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def write_encoder(
    directory: Path, auto: type, config: dict[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Any:
    """A model directory with tokenizer; no bias or norm is trivial. Returns transformers' model.

    Args:
        auto: class of transformers that builds the model, such as ``transformers.AutoModel``.
    """
    torch.manual_seed(seed)
    model = auto.from_config(transformers.AutoConfig.for_model(**(_SIZES | config))).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param) * 0.2) if param.ndim == 1 else param.normal_(std=0.2)
    write_tokenizer(directory, wordpiece_tokenizer())
    model.to(dtype).save_pretrained(directory)
    return model.float()


def encoded(text: str, text_pair: str | None = None) -> dict[str, torch.Tensor]:
    """What transformers' models take for one prompt."""
    encoding = wordpiece_tokenizer().encode(text, text_pair)
    return {
        "input_ids": torch.tensor([encoding.ids]),
        "attention_mask": torch.ones(1, len(encoding.ids), dtype=torch.int64),
        "token_type_ids": torch.tensor([encoding.type_ids]),
    }
