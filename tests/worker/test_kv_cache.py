"""The cache in every layout."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from vllm_ext.contracts.kv_cache import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheLayout,
    KVCacheSpec,
)
from vllm_ext.errors import EngineError
from vllm_ext.worker.kv_cache import allocate_kv_cache

SPEC = FullAttentionSpec(block_size=4, num_kv_heads=3, head_size=5, dtype=torch.float16)
HOST = torch.device("cpu")
# Sizes of a layer's tensor, by the letters of the layout.
SIZES = {"B": 7, "H": 3, "N": 4, "C": 10}


@pytest.mark.parametrize("layout", KVCacheLayout)
def test_a_layer_has_the_dimensions_of_the_layout(layout):
    config = KVCacheConfig(7, (KVCacheGroupSpec(("one", "two"), SPEC),), layout)

    caches = allocate_kv_cache(config, HOST)

    assert set(caches) == {"one", "two"}
    for cache in caches.values():
        assert cache.shape == tuple(SIZES[letter] for letter in layout.value if letter != "L")
        assert cache.dtype is torch.float16
        assert not cache.any()
    caches["one"].fill_(1)
    assert not caches["two"].any()


@pytest.mark.parametrize("layout", KVCacheLayout)
def test_in_memory_the_layers_lie_where_the_layout_has_them(layout):
    config = KVCacheConfig(7, (KVCacheGroupSpec(("one", "two"), SPEC),), layout)

    caches = allocate_kv_cache(config, HOST)

    distance = caches["two"].data_ptr() - caches["one"].data_ptr()
    inner = layout.value[layout.layer_dim + 1 :]
    assert distance == 2 * torch.tensor([SIZES[letter] for letter in inner]).prod()


def test_groups_may_store_different_things():
    other = FullAttentionSpec(block_size=2, num_kv_heads=1, head_size=8, dtype=torch.float32)
    config = KVCacheConfig(3, (KVCacheGroupSpec(("a",), SPEC), KVCacheGroupSpec(("b",), other)))

    caches = allocate_kv_cache(config, HOST)

    assert caches["a"].shape == (3, 4, 3, 10)
    assert caches["b"].shape == (3, 2, 1, 16)


def test_an_unknown_kind_of_cache_is_refused():
    @dataclass(frozen=True, slots=True)
    class Rolling(KVCacheSpec):
        """Some other kind."""

    config = KVCacheConfig(3, (KVCacheGroupSpec(("a",), Rolling(4)),))

    with pytest.raises(EngineError, match=r"Rolling \(layers: a\)"):
        allocate_kv_cache(config, HOST)
