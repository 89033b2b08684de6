"""Checkpoints whose weights were changed, as references for quantized engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def is_dense(name: str, tensor: torch.Tensor) -> bool:
    """Whether a checkpoint's tensor is the weight of a dense layer within the model's body."""
    return tensor.dim() == 2 and name.endswith("_proj.weight")


def copy_with_weights(model: Path, target: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A model directory ``target``, the one of ``model`` with each dense weight changed."""
    return copy_with_tensors(model, target, lambda name, weight: {name: change(weight)})


def copy_with_tensors(
    model: Path, target: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], **config: Any
) -> Path:
    """A model directory ``target``: tensors in place of each dense weight, and keys besides those of config.json."""
    shutil.copytree(model, target)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(model / WEIGHTS).items():
        tensors |= change(name, tensor) if is_dense(name, tensor) else {name: tensor}
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    values = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(values))
    return target


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row: the largest number becomes 127. What the format means, by itself."""
    scale = weight.abs().max(dim=1).values / 127
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def through_int8(weight: torch.Tensor) -> torch.Tensor:
    """The weight that int8 and a scale per row stand for."""
    whole, scale = to_int8(weight)
    return whole * scale[:, None]
