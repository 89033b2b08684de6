"""The paged KV cache: what a layer needs, what the engine grants, and how it lies in memory."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class KVCacheLayout(enum.StrEnum):
    """Order of the dimensions of the KV cache in memory, outermost first.

    L layer, B block, H KV head, N token in the block, C content (key, then value: ``2 * head_size`` numbers).
    A layer sees the tensor without its L dimension, in the order of the layout.
    """

    LBHNC = "LBHNC"
    LBNHC = "LBNHC"
    LHBNC = "LHBNC"
    BLHNC = "BLHNC"
    BLNHC = "BLNHC"
    BHLNC = "BHLNC"

    def shape(self, *, layers: int, blocks: int, heads: int, block_size: int, content: int) -> tuple[int, ...]:
        """Sizes of the whole cache in this order."""
        sizes = {"L": layers, "B": blocks, "H": heads, "N": block_size, "C": content}
        return tuple(sizes[letter] for letter in self.value)

    @property
    def layer_dim(self) -> int:
        """The dimension to select a layer from."""
        return self.value.index("L")


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """What one layer stores for each token; ``block_size`` is in tokens."""

    block_size: int

    @property
    def page_size_bytes(self) -> int:
        """Bytes of one block of one layer."""
        raise NotImplementedError(f"{type(self).__name__} does not define page_size_bytes")


@dataclass(frozen=True, slots=True)
class FullAttentionSpec(KVCacheSpec):
    """Keys and values of all previous tokens.

    ``sliding_window``: only so many of them, the newest, are read. A request gives a block back once no layer reads
    anything of it any more; where another layer of the model reads all tokens it keeps them all, because the layers of
    a model have the same blocks.
    """

    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    sliding_window: int | None = None

    @property
    def page_size_bytes(self) -> int:
        return 2 * self.block_size * self.num_kv_heads * self.head_size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class EncoderOnlyAttentionSpec(FullAttentionSpec):
    """Nothing is stored: every token of a prompt sees every other in one step. A builder of such layers is given it."""

    @property
    def page_size_bytes(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class KVCacheGroupSpec:
    """Layers that share one block table."""

    layer_names: tuple[str, ...]
    kv_cache_spec: KVCacheSpec


@dataclass(frozen=True, slots=True)
class KVCacheConfig:
    """What a worker allocates: the same number of blocks for every layer."""

    num_blocks: int
    kv_cache_groups: tuple[KVCacheGroupSpec, ...] = field(default_factory=tuple)
    kv_cache_layout: KVCacheLayout = KVCacheLayout.LBNHC
