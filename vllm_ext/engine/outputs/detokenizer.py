"""From tokens to text, while the tokens are still coming.

A token is not always whole characters: byte-level and byte-fallback vocabularies spread one character over several
tokens. So each token stands for bytes here, and a UTF-8 decoder gives characters out once they are complete.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

from vllm_ext.contracts.tokenizer import TokenizerLike

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"


def _byte_level_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary: printable ones for themselves, the others for
    the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


class TokenBytes:
    """The bytes that each token of a vocabulary adds to a text; each is found once, with the tokenizer's own decoder.

    Args:
        skip_special_tokens: special tokens add nothing, instead of their own text.
    """

    def __init__(self, tokenizer: TokenizerLike, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self.has_word_ends = bool(getattr(tokenizer, "has_word_ends", False))
        """Whether a piece may end with the space before the next one, which is no text where none comes."""
        self._pieces: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """What ``token_id`` adds when it is not the first token of the text."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._find(token_id)
        return piece

    def leading(self, token_id: int) -> bytes:
        """What ``token_id`` adds at the beginning of a text, where many decoders drop a space."""
        alone = self._decode([token_id])
        return self[token_id] if _REPLACEMENT in alone else alone.encode()

    def text(self, token_id: int) -> str:
        """The token by itself; a byte that is no whole character shows as U+FFFD."""
        return self[token_id].decode(errors="replace")

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _find(self, token_id: int) -> bytes:
        # The second of two equal tokens is decoded in the middle of a text, whatever the decoder does at its ends; so
        # is the first, where it is what follows that counts.
        alone, twice = self._decode([token_id]), self._decode([token_id, token_id])
        text = twice[: len(twice) - len(alone)] if self.has_word_ends else twice[len(alone) :]
        if _REPLACEMENT not in text:
            return text.encode()
        (token,) = self._tokenizer.convert_ids_to_tokens([token_id])
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        if all(char in _ALPHABET for char in token):
            return bytes(_ALPHABET[char] for char in token)
        return text.encode()


class IncrementalDetokenizer:
    """The text of one request's output.

    Args:
        token_bytes: of the model's vocabulary.
        prompt_token_ids: what the output comes after; where these have no text, it is the beginning of one.
    """

    def __init__(self, token_bytes: TokenBytes, prompt_token_ids: Sequence[int] = ()) -> None:
        self._token_bytes = token_bytes
        before = next((piece for token_id in reversed(prompt_token_ids) if (piece := token_bytes[token_id])), b"")
        self._at_start = not before and not token_bytes.has_word_ends
        self._space = before[-1:] if token_bytes.has_word_ends and before.endswith(b" ") else b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, token_ids: Iterable[int]) -> str:
        """The characters that ``token_ids`` complete; bytes that are no UTF-8 become U+FFFD."""
        if self._at_start:
            return "".join(self._decode_at_start(token_id) for token_id in token_ids)
        token_bytes = self._token_bytes
        data = b"".join([token_bytes[token_id] for token_id in token_ids])
        return self._decoder.decode(self._without_last_space(data) if token_bytes.has_word_ends else data)

    def flush(self) -> str:
        """A U+FFFD for a character that never became complete, else nothing; the last call."""
        return self._decoder.decode(b"", final=True)

    def _without_last_space(self, data: bytes) -> bytes:
        """The space at the end waits for the next token."""
        if not data:
            return data
        whole = self._space + data
        self._space = b" " if whole.endswith(b" ") else b""
        return whole.removesuffix(b" ")

    def _decode_at_start(self, token_id: int) -> str:
        piece = self._token_bytes[token_id]
        if self._at_start and piece:
            self._at_start = False
            piece = self._token_bytes.leading(token_id)
        return self._decoder.decode(piece)
