"""The paged KV cache: what a layer needs, what the engine grants, and how it lies in memory."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.vllm_config import VllmConfig


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

    def max_num_blocks_per_req(self, vllm_config: VllmConfig, max_len: int) -> int:
        """Blocks of a request of ``max_len`` tokens."""
        return -(-max_len // self.block_size)

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Bytes that one layer stores of a request of ``max_model_len`` tokens."""
        return self.max_num_blocks_per_req(vllm_config, vllm_config.model_config.max_model_len) * self.page_size_bytes

    def copy_with_new_block_size(self, block_size: int) -> Self:
        """The same with blocks of so many tokens."""
        return replace(self, block_size=block_size)


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

    attention_chunk_size: ClassVar[int | None] = None
    page_size_padded: ClassVar[int | None] = None
    dcp_sharded: ClassVar[bool] = False
    non_causal: ClassVar[bool] = False
    """vLLM's: there are no windows of another kind, blocks have no padding, and a context is on one rank."""

    @property
    def head_size_v(self) -> int:
        """Numbers in a value, as many as in a key."""
        return self.head_size

    @property
    def real_page_size_bytes(self) -> int:
        """Bytes of one block of one layer, of which none are padding."""
        return self.page_size_bytes

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

    is_eagle_group: ClassVar[bool] = False
    enable_kv_transfer: ClassVar[bool] = False
    """Layers are those of the model, and their cache goes to no other engine."""


@dataclass(frozen=True, slots=True)
class KVCacheConfig:
    """What a worker allocates: the same number of blocks for every layer."""

    num_blocks: int
    kv_cache_groups: tuple[KVCacheGroupSpec, ...] = field(default_factory=tuple)
    kv_cache_layout: KVCacheLayout = KVCacheLayout.LBNHC
