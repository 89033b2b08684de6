"""Small tokenizers of the kinds that language models use."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SAMPLE_TEXT = [
    "the quick brown fox jumps over the lazy dog, again and again and again.",
    "Größe, naïve, café; žluťoučký kůň; ελληνικά; русский текст",
    "你好，世界。你好，世界。日本語のテキスト",
    "😀😃😄 👩\u200d👩\u200d👧 e\u0301e\u0301 a\u0308o\u0308",
]


def byte_level_tokenizer(vocab_size: int = 420) -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it; token 0 is end of text and special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE_TEXT, trainer)
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """BPE with spaces as U+2581 and a token for each byte of an unknown character, as Llama 2 and Gemma have it."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = []
    for char in ["▁", *"abcdefghijklmnopqrstuvwxyz,.é你"]:
        vocab[char] = len(vocab)
    for pair in [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "n"), ("▁", "a"), ("▁", "▁"), ("你", "你")]:
        merges.append(pair)
        vocab["".join(pair)] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    """Unigram with the Metaspace decoder, as T5 and XLM have it."""
    pieces = ["<unk>", "▁", "▁the", "▁a", *"abcdefghijklmnopqrstuvwxyzé你,."]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_end_tokenizer() -> Tokenizer:
    """BPE that marks the ends of words, as the first GPT and CLIP have it; token 0 is special."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE_TEXT, trainer)
    return tokenizer


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> Path:
    """Save into a model directory; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
