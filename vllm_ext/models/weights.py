"""Filling a model's parameters from a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from vllm_ext.errors import CheckpointError, did_you_mean
from vllm_ext.layers.linear import copy_checked


def check_tied(tensor: torch.Tensor, other: torch.Tensor, other_name: str) -> None:
    """CheckpointError where a checkpoint holds both names of a parameter that has two, with different numbers."""
    if tensor.shape != other.shape or not bool((tensor == other).all()):
        raise CheckpointError(
            f"it differs from {other_name!r}, and config.json says that the two are one; set tie_word_embeddings to "
            "false there if the model has an output layer of its own, or remove the one that is not the model's"
        )


def load_stacked_weights(
    model: nn.Module,
    weights: Iterable[tuple[str, torch.Tensor]],
    stacked: Mapping[str, tuple[str, Any]],
    ignored: Iterable[str] = (),
) -> set[str]:
    """Copy each tensor to its parameter.

    Args:
        stacked: part of a checkpoint's name to the part of the parameter's that holds several tensors, and the
            ``shard_id`` within it, e.g. ``{"q_proj": ("qkv_proj", "q")}``.
        ignored: ends of names that are not parameters.

    Returns: names of the parameters that were filled completely.

    Raises:
        CheckpointError: a tensor has no parameter, or another shape than it.
    """
    params = dict(model.named_parameters())
    ends = tuple(ignored)
    filled: set[str] = set()
    missing: dict[str, set[Any]] = {}
    for name, tensor in weights:
        if ends and name.endswith(ends):
            continue
        target, shard_id = _find_target(name, stacked)
        param = params.get(target)
        if param is None:
            raise CheckpointError(f"the model has no parameter for it{did_you_mean(target, params)}")
        if shard_id is None:
            load = getattr(param, "weight_loader", None)
            copy_checked(param.data, tensor) if load is None else load(param, tensor)
            filled.add(target)
            continue
        param.weight_loader(param, tensor, shard_id)  # type: ignore[attr-defined]
        wanted = missing.setdefault(target, _shards_of(target, stacked))
        wanted.discard(shard_id)
        if not wanted:
            filled.add(target)
    return filled


def _find_target(name: str, stacked: Mapping[str, tuple[str, Any]]) -> tuple[str, Any]:
    """The parameter for tensor ``name``, and the part of it where it holds several tensors."""
    module, _, leaf = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    if part in stacked:
        whole, shard_id = stacked[part]
        return f"{parent}.{whole}.{leaf}", shard_id
    return name, None


def _shards_of(target: str, stacked: Mapping[str, tuple[str, Any]]) -> set[Any]:
    whole = target.split(".")[-2]
    return {shard_id for name, shard_id in stacked.values() if name == whole}
