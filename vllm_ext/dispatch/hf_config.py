"""A model directory's ``config.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.errors import CheckpointError, listing

DEMO_MODEL = Path(__file__).parent.parent / "assets" / "demo_model"
"""The model that comes with vllm_ext, used where none is named."""


def read_hf_config(model: Path) -> HFConfig:
    """Read ``config.json`` of the model directory ``model``.

    Raises:
        CheckpointError: the directory or the file is missing or cannot be read, or it is not a JSON object.
    """
    path = model / "config.json"
    try:
        _check_directory(model, path)
    except OSError as error:
        raise CheckpointError(f"model directory {str(model)!r} cannot be looked into: {error.strerror}") from error
    values = read_json_object(path)
    architectures = values.get("architectures", [])
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{path}: architectures is {architectures!r}; it takes a list of names")
    return HFConfig(values, path)


def _check_directory(model: Path, config_file: Path) -> None:
    if not model.is_dir():
        what = "is a file, not a directory" if model.exists() else "does not exist"
        raise CheckpointError(
            f"model directory {str(model)!r} {what}. Give the path of a local Hugging Face model directory "
            "(config.json, *.safetensors, tokenizer.json); models are not downloaded"
        )
    if not config_file.is_file():
        raise CheckpointError(f"no config.json in model directory {str(model)!r}; it holds: {held_by(model)}")


def held_by(directory: Path) -> str:
    """Names of the files in ``directory``, for messages about one that is not there. A download cache has links, of
    which the files may be gone.
    """
    return listing(
        path.name if path.exists() else f"{path.name} (a link to {os.readlink(path)!r}, which does not exist)"
        for path in directory.iterdir()
    )


def position_offset(config: HFConfig) -> int:
    """Index of the first token's position, of a model whose positions begin after that of the padding token.

    Raises:
        CheckpointError: ``pad_token_id`` is no token id, or leaves no positions.
    """
    pad_token_id = config.get("pad_token_id", 1)
    num_positions = config.positive_int("max_position_embeddings")
    if not isinstance(pad_token_id, int) or isinstance(pad_token_id, bool) or not 0 <= pad_token_id < num_positions - 1:
        raise CheckpointError(
            f"{config.source}: pad_token_id is {pad_token_id!r}; positions begin after it, so that it takes a number "
            f"from 0 to {num_positions - 2}, of max_position_embeddings {num_positions}"
        )
    return pad_token_id + 1


_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
"""Names under which architectures keep the number of positions they were made for."""
_OFFSET_POSITIONS = ("roberta", "xlm-roberta")
"""``model_type`` of models whose positions begin after that of the padding token."""


def own_max_model_len(hf_config: HFConfig) -> int | None:
    """Positions that the model was made for, stretched as its ``rope_parameters`` say; ``None`` where it names none.

    As in vLLM, ``linear`` and ``dynamic`` stretch what is written down; ``yarn`` the length before it.
    """
    key = next((key for key in _LENGTH_KEYS if hf_config.get(key) is not None), None)
    if key is None:
        return None
    own, rope = hf_config.positive_int(key), hf_config.rope_parameters
    if hf_config.get("model_type") in _OFFSET_POSITIONS:
        return own - position_offset(hf_config)
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    # What is wrong with a factor is the rotary embedding's to say; Gemma 3 writes down what is stretched already.
    if not isinstance(factor, int | float) or str(hf_config.get("model_type", "")).startswith("gemma3"):
        return own
    if kind in ("linear", "dynamic"):
        return max(own, int(own * factor))
    if kind == "yarn":
        return max(own, int((rope.get("original_max_position_embeddings") or own) * factor))
    return own


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model directory; CheckpointError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}, not an object")
    return values
