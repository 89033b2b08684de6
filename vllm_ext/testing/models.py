"""Model directories for tests."""

from __future__ import annotations

import json
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from vllm_ext.dispatch.hf_config import DEMO_MODEL


def changed_model(directory: str | PathLike[str], model: str | PathLike[str] | None = None, **config: Any) -> Path:
    """A copy of a model with other values in its ``config.json``, such as ``architectures`` of a plugin.

    Args:
        directory: where to write it; it must not exist.
        model: the model to copy; the one that comes with vllm_ext (4 MB) if omitted.
        config: values by their keys; the others stay.

    Returns: ``directory``.

    Raises:
        FileExistsError: ``directory`` exists.
    """
    target = Path(directory)
    shutil.copytree(DEMO_MODEL if model is None else model, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | config, indent=2), encoding="utf-8")
    return target
