"""How attention of models of transformers becomes ours: two entries of its attention-interface registry.

``vllm_ext`` is used in steps: it hands query, key and value to the :class:`Attention` layer that the module carries.
``vllm_ext_probe`` is used once, on two tokens, before there are such layers: it notes what each module asks for.
Masks are registered for the probe only: without an entry for an implementation transformers makes none.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from vllm_ext.attention.layer import Attention
from vllm_ext.errors import UnsupportedModel

STEP, PROBE = "vllm_ext", "vllm_ext_probe"
_LAYER = "vllm_ext_attention"
_UNKNOWN_TERMS = ("s_aux", "position_bias", "head_mask")
"""What some models add to the logits of attention, and backends do not."""


@dataclass(frozen=True, slots=True)
class Found:
    """One call of attention: what it needs of a layer."""

    module: nn.Module
    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    sliding_window: int | None
    logits_soft_cap: float | None


@dataclass(slots=True)
class Probe:
    """What a run with :data:`PROBE` found; ``windows`` are those of the masks that were made."""

    found: list[Found] = field(default_factory=list)
    windows: list[int | None] = field(default_factory=list)


probing: ContextVar[Probe] = ContextVar("vllm_ext_attention_probe")


def add_layer(found: Found, prefix: str) -> None:
    """Give a module the layer of ours that computes for it."""
    layer = Attention(
        found.num_heads,
        found.head_size,
        found.scale,
        found.num_kv_heads,
        prefix=prefix,
        logits_soft_cap=found.logits_soft_cap,
        per_layer_sliding_window=found.sliding_window,
    )
    found.module.add_module(_LAYER, layer)


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    """Query ``[1, heads, tokens, head_size]``, key and value alike, to ``[1, tokens, heads, value size]``."""
    head_size, value_size = query.shape[-1], value.shape[-1]
    if value_size != head_size:
        value = F.pad(value, (0, head_size - value_size))
    # The flat batch: tokens of all requests, one after the other.
    rows = [x[0].transpose(0, 1).flatten(1) for x in (query, key, value)]
    output = module.get_submodule(_LAYER)(*rows).view(1, -1, query.shape[1], head_size)
    return output[..., :value_size], None


def _note(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Shapes as in :func:`_attend`; the result is zero."""
    name = type(module).__name__
    if added := [term for term in _UNKNOWN_TERMS if others.get(term) is not None]:
        raise UnsupportedModel(f"its {name} adds {', '.join(added)} to attention, which backends do not compute")
    if others.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedModel(f"its {name} lets tokens see those after them")
    _, num_heads, num_tokens, head_size = query.shape
    if value.shape[-1] > head_size:
        raise UnsupportedModel(f"the values of its {name} are wider than its keys")
    probe = probing.get()
    if attention_mask is not None:
        # What the model computes by itself is the mask; the argument is for kernels that take none.
        sliding_window = _window_of(probe, attention_mask, name)
    scale = head_size**-0.5 if scaling is None else float(scaling)
    probe.found.append(Found(module, num_heads, key.shape[1], head_size, scale, sliding_window, softcap))
    return query.new_zeros(1, num_tokens, num_heads, value.shape[-1]), None


def _note_mask(
    q_length: int, kv_length: int, mask_function: Any, local_size: int | None = None, **_: Any
) -> torch.Tensor:
    """A tensor of the right shape that holds nothing but the place of its window in :attr:`Probe.windows`."""
    window = local_size or 1000
    pairs = [(0, 1), (5, 5), (window, 0), (window, 1), (3 * window, 2 * window), (3 * window, 2 * window + 1)]
    for query, key in pairs:
        seen = bool(mask_function(*map(torch.tensor, (0, 0, query, key))))
        if seen != (key <= query and (local_size is None or key > query - local_size)):
            raise UnsupportedModel("its attention is neither causal over all tokens nor over a sliding window")
    probe = probing.get()
    probe.windows.append(local_size)
    return torch.full((1, 1, q_length, kv_length), float(len(probe.windows) - 1))


def _window_of(probe: Probe, mask: torch.Tensor, name: str) -> int | None:
    numbers = set(mask.flatten().tolist())
    number = numbers.pop()
    if numbers or number not in range(len(probe.windows)):
        raise UnsupportedModel(f"its {name} masks attention in a way of its own")
    return probe.windows[int(number)]


AttentionInterface.register(STEP, _attend)
AttentionInterface.register(PROBE, _note)
AttentionMaskInterface.register(PROBE, _note_mask)
