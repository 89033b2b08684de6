"""A model directory's tokenizer and its end-of-sequence tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer

from vllm_ext.contracts.tokenizer import TOKENIZER_METHODS, TokenizerLike
from vllm_ext.contracts.vllm_config import HFConfig, ModelConfig
from vllm_ext.dispatch.hf_config import held_by, read_json_object
from vllm_ext.errors import (
    CheckpointError,
    ContractError,
    InvalidRequest,
    PluginLoadError,
    TokenizerError,
    VllmExtError,
    dotted_path,
    innermost_cause,
)
from vllm_ext.registry.tokenizers import TokenizerRegistry

TOKENIZER_FILE = "tokenizer.json"
GENERATION_CONFIG_FILE = "generation_config.json"
_LONG = 4096
"""Characters or tokens of a text for which an event loop shall not wait."""


class FastTokenizer:
    """A tokenizer of the library tokenizers, as ``tokenizer.json`` describes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cut: tuple[int, Tokenizer] = (-1, tokenizer)

    @classmethod
    def from_pretrained(cls, path_or_repo_id: str | Path) -> Self:
        return cls(read_tokenizer_file(Path(path_or_repo_id)))

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def has_word_ends(self) -> bool:
        """Whether tokens say that a space follows (``the</w>``, GPT's first vocabulary), and not that one precedes. An
        extension of vLLM's contract.
        """
        decoder = self._tokenizer.decoder
        return decoder is not None and b'"BPEDecoder"' in decoder.__getstate__()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if len(text) > _LONG:
            # Only the library's calls for several texts let other threads of Python run: an event loop stands no longer
            # than it takes to hand over the ids. For a short text they cost more than that.
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        else:
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def encode_pair(self, text: str, text_pair: str, max_length: int | None = None) -> tuple[list[int], list[int]]:
        """Two texts as one prompt: token ids, and 0 or 1 for each, which text it is of. The longer text is cut first
        where both have more than ``max_length`` tokens. An extension of vLLM's contract.

        Raises:
            InvalidRequest: ``max_length`` is less than what the tokenizer puts around every pair.
        """
        tokenizer = self._tokenizer if max_length is None else self._truncating(max_length)
        encoding = tokenizer.encode(text, text_pair)
        return encoding.ids, encoding.type_ids

    def _truncating(self, max_length: int) -> Tokenizer:
        """A tokenizer that cuts; this one never does."""
        if max_length < (num_around := self._tokenizer.num_special_tokens_to_add(is_pair=True)):
            raise InvalidRequest(
                f"truncate_prompt_tokens is {max_length}, and the tokenizer puts {num_around} tokens around every pair "
                "of texts; give more"
            )
        limit, tokenizer = self._cut
        if limit != max_length:
            tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
            tokenizer.enable_truncation(max_length, strategy="longest_first")
            # Another thread may put one of another limit there at once.
            self._cut = (max_length, tokenizer)
        return tokenizer

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        if len(ids) > _LONG:  # as in encode()
            return str(self._tokenizer.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0])
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]


@contextmanager
def tokenizing() -> Iterator[None]:
    """InvalidRequest with a reason, in place of what a tokenizer raises for a text that it cannot take."""
    try:
        yield
    except VllmExtError:
        raise
    except TypeError as error:  # how the library answers to half of a surrogate pair
        raise InvalidRequest("the prompt's text cannot be tokenized: it is not valid Unicode") from error
    except Exception as error:  # the library raises bare Exception
        raise InvalidRequest(f"the prompt's text cannot be tokenized: {error}") from error


def load_tokenizer(model_config: ModelConfig) -> TokenizerLike:
    """The tokenizer of ``model_config.tokenizer``, by the class registered for ``model_config.tokenizer_mode``.

    Raises:
        PluginNotFound: no such mode is registered.
        PluginLoadError, ContractError: its class cannot be imported, fails, or lacks methods (the text has all).
        TokenizerError: the directory has no tokenizer of that kind.
    """
    mode = model_config.tokenizer_mode
    cls = TokenizerRegistry.load_tokenizer_cls(mode, named_by="engine.tokenizer_mode")
    name = f"tokenizer {dotted_path(cls)} of mode {mode!r}"
    if missing := [method for method in TOKENIZER_METHODS if not hasattr(cls, method)]:
        raise ContractError(f"{name} lacks {', '.join(missing)}; a tokenizer has: {', '.join(TOKENIZER_METHODS)}")
    try:
        tokenizer: TokenizerLike = cls.from_pretrained(model_config.tokenizer)  # type: ignore[attr-defined]
    except (VllmExtError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginLoadError(
            f"{name} cannot be made for {model_config.tokenizer!r}: {innermost_cause(error)}"
        ) from error
    return tokenizer


def read_tokenizer_file(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json``. Truncation and padding that the file may ask for are switched off.

    Raises:
        TokenizerError: the file is missing or cannot be read.
    """
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        present = held_by(directory) if directory.is_dir() else "no such directory"
        raise TokenizerError(
            f"no {TOKENIZER_FILE} in {str(directory)!r}, which holds: {present}. Only the format of the 'tokenizers' "
            "library is read; save the model's tokenizer with transformers (AutoTokenizer...save_pretrained) to get it"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{path} cannot be read as a tokenizer: {error}. Is the file complete, and of the 'tokenizers' library?"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_eos_token_ids(directory: Path, hf_config: HFConfig) -> frozenset[int]:
    """End-of-sequence tokens: those of ``generation_config.json``, or of ``config.json`` where it names none.

    Raises:
        CheckpointError: ``generation_config.json`` is damaged, or ``eos_token_id`` is neither a number nor a list.
    """
    path = directory / GENERATION_CONFIG_FILE
    generation_config = read_json_object(path) if path.is_file() else {}
    source: Path | None = path
    value = generation_config.get("eos_token_id")
    if value is None:
        source, value = hf_config.source, hf_config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise CheckpointError(f"{source}: eos_token_id is {value!r}; it takes a token id or a list of token ids")
    return frozenset(ids)
