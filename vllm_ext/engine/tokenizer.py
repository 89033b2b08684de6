"""A model directory's tokenizer and its end-of-sequence tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.dispatch.hf_config import read_json_object
from vllm_ext.errors import CheckpointError, TokenizerError, listing

TOKENIZER_FILE = "tokenizer.json"
GENERATION_CONFIG_FILE = "generation_config.json"


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json``. Truncation and padding that the file may ask for are switched off.

    Raises:
        TokenizerError: the file is missing or cannot be read.
    """
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        present = listing(entry.name for entry in directory.iterdir()) if directory.is_dir() else "no such directory"
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
