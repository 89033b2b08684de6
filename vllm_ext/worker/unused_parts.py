"""Warnings of parts of a platform that are there, and that no step will use: their author takes them for used."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vllm_ext.contracts.attention import AttentionBackend
from vllm_ext.contracts.kv_cache import KVCacheLayout
from vllm_ext.contracts.platform import Platform
from vllm_ext.contracts.platform_device import platform_name
from vllm_ext.errors import dotted_path

logger = logging.getLogger(__name__)

_OF_OLDER_VLLM = ("get_kv_cache_shape", "get_kv_cache_stride_order", "get_required_kv_cache_layout")
"""How a backend said what its cache looks like before layouts were agreed on."""
_DIMENSIONS = {"B": "blocks", "H": "kv_heads", "N": "block_size", "C": "2 * head_size"}


def warn_of_unread_shapes(backends: Iterable[type[AttentionBackend]], layout: KVCacheLayout) -> None:
    """Warn of a backend that wants its KV cache in a shape of its own and names no layout.

    Args:
        layout: the cache's.
    """
    for backend in dict.fromkeys(backends):
        unread = [f"{name}()" for name in _OF_OLDER_VLLM if hasattr(backend, name)]
        if unread and backend.supported_kv_cache_layouts() is None:
            shape = ", ".join(_DIMENSIONS[letter] for letter in layout.value if letter != "L")
            logger.warning(
                "attention backend %s defines %s, which is not asked for, here as in vLLM 0.32: a layer's KV cache is "
                "[%s], by the layout %s. supported_kv_cache_layouts() says which layouts it can read",
                dotted_path(backend),
                " and ".join(unread),
                shape,
                layout.value,
            )


def warn_of_unused_wrapper(platform: Platform, qualname: str, backends: Iterable[type[AttentionBackend]]) -> None:
    """Warn that no step is replayed, since the backends' metadata cannot be part of a static graph.

    Args:
        qualname: class path of the platform's wrapper; one of ours may be left out, as its platform's users may choose
            the backend.
    """
    if not qualname.startswith("vllm_ext."):
        logger.warning(
            "%s has the static graph wrapper %s, and no step is replayed: get_cudagraph_support() of the metadata "
            "builder of attention backend %s says NEVER",
            platform_name(platform),
            qualname,
            ", ".join(dict.fromkeys(backend.get_name() for backend in backends)),
        )
