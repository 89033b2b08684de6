"""The tokenizer contract: texts to tokens and back, for one model directory.

In vLLM: ``vllm.tokenizers``. What an engine calls is here; a tokenizer may do more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable


@runtime_checkable
class TokenizerLike(Protocol):
    """A tokenizer; its methods may be called from any thread. vLLM: ``TokenizerLike``."""

    @classmethod
    def from_pretrained(cls, path_or_repo_id: str | Path) -> Self:
        """The tokenizer of a model directory; nothing is downloaded. vLLM: ``from_pretrained``.

        Raises:
            TokenizerError: the directory has none of this kind, or it cannot be read.
        """

    @property
    def vocab_size(self) -> int:
        """Number of token ids, which go from 0 on. vLLM: ``vocab_size``."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``, never cut or padded. vLLM: ``encode``.

        Args:
            add_special_tokens: whether such as a first token are added, where the model wants them.

        Raises:
            TypeError: ``text`` is no valid Unicode.
        """

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ``ids``; bytes that are no whole character become U+FFFD. vLLM: ``decode``."""

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Each token of ``ids`` as the vocabulary writes it; an empty string for an unknown id. vLLM:
        ``convert_ids_to_tokens``.
        """


TOKENIZER_METHODS = ("from_pretrained", "vocab_size", "encode", "decode", "convert_ids_to_tokens")
