"""A model directory's ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.errors import CheckpointError, listing

DEMO_MODEL = Path(__file__).parent.parent / "assets" / "demo_model"
"""The model that comes with vllm_ext, used where none is named."""


def read_hf_config(model: Path) -> HFConfig:
    """Read ``config.json`` of the model directory ``model``.

    Raises:
        CheckpointError: the directory or the file is missing, or it is not a JSON object.
    """
    if not model.is_dir():
        what = "is a file, not a directory" if model.exists() else "does not exist"
        raise CheckpointError(
            f"model directory {str(model)!r} {what}. Give the path of a local Hugging Face model directory "
            "(config.json, *.safetensors, tokenizer.json); models are not downloaded"
        )
    path = model / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"no config.json in model directory {str(model)!r}; it holds: {listing(p.name for p in model.iterdir())}"
        )
    values = read_json_object(path)
    architectures = values.get("architectures", [])
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{path}: architectures is {architectures!r}; it takes a list of names")
    return HFConfig(values, path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model directory; CheckpointError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}, not an object")
    return values
