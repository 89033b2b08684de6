"""The KV cache of a worker: allocated in the layout that was agreed on, bound to the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vllm_ext import huge_pages
from vllm_ext.contracts.kv_cache import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm_ext.errors import EngineError


def allocate_kv_cache(config: KVCacheConfig, device: torch.device) -> dict[str, torch.Tensor]:
    """The cache of each layer, by layer name, zeroed; the layers of a group share one allocation.

    A layer's tensor has the dimensions of the layout without L.

    Raises:
        EngineError: a group stores something other than keys and values of all tokens.
    """
    caches: dict[str, torch.Tensor] = {}
    for group in config.kv_cache_groups:
        layout = config.kv_cache_layout
        spec = _full_attention(group)
        shape = layout.shape(
            layers=len(group.layer_names),
            blocks=config.num_blocks,
            heads=spec.num_kv_heads,
            block_size=spec.block_size,
            content=2 * spec.head_size,
        )
        whole = _zeros(shape, spec.dtype, device)
        caches.update(zip(group.layer_names, whole.unbind(layout.layer_dim), strict=True))
    return caches


def bind_kv_cache(caches: Mapping[str, torch.Tensor], layers: Mapping[str, Any]) -> None:
    """Give each layer its cache."""
    for name, cache in caches.items():
        layers[name].bind_kv_cache(cache)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros: the padding of a gather is multiplied by 0, so what was never written must not be NaN."""
    if torch.empty(0, device=device).is_cpu:
        # Memory as it is written: start-up does not wait for it.
        return huge_pages.zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def _full_attention(group: KVCacheGroupSpec) -> FullAttentionSpec:
    spec = group.kv_cache_spec
    if not isinstance(spec, FullAttentionSpec):
        raise EngineError(
            f"the worker cannot allocate a KV cache of {type(spec).__name__} (layers: {', '.join(group.layer_names)}); "
            "it knows FullAttentionSpec"
        )
    return spec
