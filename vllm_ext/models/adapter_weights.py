"""Filling a model of transformers from a checkpoint, by the library's own table of what is named otherwise there."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from vllm_ext.errors import CheckpointError, did_you_mean
from vllm_ext.layers.linear import copy_checked
from vllm_ext.models.weights import check_tied

_RELICS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")
"""Ends of the names of buffers that older versions stored, and newer ones compute."""


class WeightNames:
    """Which parameter a tensor of a checkpoint belongs to.

    Names may lack the prefix of the model's body, or have it; some are renamed, and some tensors are parts of one
    parameter, such as the experts of a layer.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._body: str = model.base_model_prefix
        conversions = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
        self._by_pattern = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}
        self._unexpected = tuple(model._keys_to_ignore_on_load_unexpected or ())

    def find(self, name: str, targets: dict[str, torch.Tensor]) -> tuple[str | None, str | None]:
        """The name in ``targets``, and the pattern of the conversion that the tensor is a part of, if any."""
        candidates = (
            rename_source_key(name, self._renamings, self._converters, self._body, targets),
            rename_source_key(name, [], [], self._body, targets),
        )
        return next((each for each in candidates if each[0] in targets), (None, None))

    def convert(self, target: str, parts: list[tuple[str, str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Parameters made of ``parts``: name in the checkpoint, pattern and tensor of each."""
        converter = copy.deepcopy(self._by_pattern[parts[0][1]])
        # Experts are stacked in the order of their numbers.
        for name, pattern, tensor in sorted(parts, key=lambda part: dot_natural_key(part[0])):
            converter.add_tensor(target, name, pattern, tensor)
        made = converter.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def is_passed_over(self, name: str, computed: set[str]) -> bool:
        """Whether the model does without the tensor: the architecture says so, or computes it."""
        spellings = {name, f"{self._body}.{name}", name.removeprefix(f"{self._body}.")}
        if name.endswith(_RELICS) or spellings & computed:
            return True
        return any(re.search(pattern, name) for pattern in self._unexpected)


def load_by_name(model: nn.Module, names: WeightNames, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
    """Copy each tensor to its parameter or buffer.

    Returns: names of the parameters that were filled; one that has several is named by its first.

    Raises:
        CheckpointError: a tensor has no parameter, or another shape than it.
    """
    first = {id(param): name for name, param in model.named_parameters()}
    targets: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    # Persistent buffers are loaded; the others are what the model makes of its configuration.
    targets |= {name: buffer for name, buffer in model.state_dict().items() if name not in targets}
    computed = {name for name, _ in model.named_buffers()} - set(targets)
    num_names = Counter(id(target) for target in targets.values())
    filled: set[str] = set()
    tied: dict[str, tuple[torch.Tensor, str]] = {}

    def fill(target: str, tensor: torch.Tensor) -> None:
        owner = first.get(id(targets[target]), target)
        if owner in tied:
            check_tied(tensor, *tied[owner])
            return
        load = getattr(targets[target], "weight_loader", None)
        copy_checked(targets[target].data, tensor) if load is None else load(targets[target], tensor)
        filled.add(owner)
        # Where weights are tied, either name may be stored, or both with the same numbers.
        if num_names[id(targets[target])] > 1:
            tied[owner] = tensor, target

    # Parts wait as views of mapped files, which take no memory.
    parts: dict[str, list[tuple[str, str, torch.Tensor]]] = {}
    for name, tensor in weights:
        target, pattern = names.find(name, targets)
        if target is None:
            if names.is_passed_over(name, computed):
                continue
            raise CheckpointError(f"the model has no parameter for it{did_you_mean(name, targets)}")
        if pattern is None:
            fill(target, tensor)
        else:
            parts.setdefault(target, []).append((name, pattern, tensor))
    for target in list(parts):
        for made, tensor in names.convert(target, parts.pop(target)).items():
            fill(made, tensor)
    return filled
