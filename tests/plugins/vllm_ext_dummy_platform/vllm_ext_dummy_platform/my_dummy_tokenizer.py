"""A tokenizer whose tokens are the bytes of the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_ext_dummy_platform import calls

NUM_BYTES = 256


class MyDummyTokenizer:
    """Needs no file. Tokens beyond the bytes have no text."""

    @property
    def vocab_size(self) -> int:
        return NUM_BYTES

    @classmethod
    def from_pretrained(cls, path_or_repo_id: str | Path) -> MyDummyTokenizer:
        return cls()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        calls["encode"] += 1
        return list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        calls["decode"] += 1
        return bytes(token_id for token_id in ids if token_id < NUM_BYTES).decode(errors="replace")

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [f"<0x{token_id:02X}>" if token_id < NUM_BYTES else "" for token_id in ids]
