"""The attention contract: a backend names its implementation, its metadata and its builder."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from vllm_ext.contracts.kv_cache import KVCacheLayout, KVCacheSpec

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.vllm_config import VllmConfig


class AttentionType(enum.StrEnum):
    """Which way a layer attends; only ``DECODER`` (causal, over a KV cache) is required of a backend."""

    DECODER = "decoder"
    ENCODER = "encoder"
    ENCODER_ONLY = "encoder_only"
    ENCODER_DECODER = "encoder_decoder"


class AttentionMetadata:
    """Base of what a builder hands to its implementation; each backend defines its own fields."""


@dataclass(slots=True)
class CommonAttentionMetadata:
    """One step, described for every backend alike.

    Requests stand one after the other in the flat batch; ``reqs`` requests have ``num_actual_tokens`` query tokens.
    """

    query_start_loc: torch.Tensor
    """int32 ``[reqs + 1]``, on the device: request ``i`` owns query tokens ``[loc[i], loc[i + 1])``."""
    query_start_loc_cpu: torch.Tensor
    """The same in host memory."""
    seq_lens: torch.Tensor
    """int32 ``[reqs]``, on the device: tokens in the cache after this step, by request."""
    seq_lens_cpu: torch.Tensor
    """The same in host memory."""
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: torch.Tensor
    """int32 ``[reqs, blocks]``: cache blocks by request in sequence order; entries beyond ``seq_lens`` are undefined
    but valid block numbers."""
    slot_mapping: torch.Tensor
    """int64 ``[num_actual_tokens]``: where each token's key and value go, ``block * block_size + offset``."""


M = TypeVar("M", bound=AttentionMetadata)


class AttentionMetadataBuilder(ABC, Generic[M]):
    """Turns :class:`CommonAttentionMetadata` into a backend's own, once per step and KV cache group."""

    def __init__(
        self,
        kv_cache_spec: KVCacheSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        self.kv_cache_spec = kv_cache_spec
        self.layer_names = layer_names
        self.vllm_config = vllm_config
        self.device = device

    @abstractmethod
    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> M:
        """Metadata of one step; valid until the next call. ``common_prefix_len`` is always 0."""


class AttentionImpl(ABC, Generic[M]):
    """The computation of one layer, bound when the model is built."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: AttentionType = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.alibi_slopes = alibi_slopes
        self.sliding_window = sliding_window
        self.kv_cache_dtype = kv_cache_dtype
        self.logits_soft_cap = logits_soft_cap
        self.attn_type = attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name

    @abstractmethod
    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: M | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Store key and value in the cache, attend, write into ``output`` and return it.

        Everything is stored before anything is attended to: a request may share blocks with another one of the step.

        Args:
            query: ``[tokens, heads, head_size]``.
            key, value: ``[tokens, kv_heads, head_size]``.
            kv_cache: this layer's cache, in the order of the layout that was agreed on (without L).
            attn_metadata: ``None`` in a profiling run; ``output`` is then left as it is and nothing is stored.
            output: ``[tokens, heads, head_size]``, written in place.
        """

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Called once after the model's weights were loaded."""


class AttentionBackend(ABC):
    """A way to compute attention over the paged cache; all methods are called on the class."""

    supported_dtypes: ClassVar[tuple[str, ...]] = ("float16", "bfloat16", "float32")
    """Names of torch dtypes."""

    @staticmethod
    @abstractmethod
    def get_name() -> str:
        """The name under which it is listed."""

    @staticmethod
    @abstractmethod
    def get_impl_cls() -> type[AttentionImpl[Any]]:
        """The class that computes one layer."""

    @staticmethod
    @abstractmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder[Any]]:
        """The class that makes the step's metadata."""

    @staticmethod
    def get_supported_head_sizes() -> list[int]:
        """Head sizes it can compute; empty for any."""
        return []

    @classmethod
    def supports_block_size(cls, block_size: int) -> bool:
        """Whether a KV cache block may hold ``block_size`` tokens."""
        return True

    @classmethod
    def supports_attn_type(cls, attn_type: AttentionType) -> bool:
        return attn_type is AttentionType.DECODER

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Whether it serves layers whose tokens see the newest ``sliding_window`` tokens only, themselves included."""
        return False

    @classmethod
    def supports_logits_soft_cap(cls) -> bool:
        """Whether it serves layers with ``logits_soft_cap``, ``cap * tanh(x / cap)``; an extension of the contract."""
        return False

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...] | None:
        """Layouts it can read, best first; ``None`` for any."""
        return None

    @classmethod
    def validate_configuration(
        cls,
        *,
        head_size: int,
        dtype: torch.dtype,
        block_size: int | None,
        attn_type: AttentionType,
        has_sliding_window: bool = False,
        has_logits_soft_cap: bool = False,
    ) -> list[str]:
        """Reasons why it cannot serve such a layer; empty when it can. ``block_size`` is ``None`` while the platform
        may still choose it.
        """
        reasons = []
        sizes = cls.get_supported_head_sizes()
        if sizes and head_size not in sizes:
            reasons.append(f"head size {head_size} is not among {sizes}")
        if str(dtype).removeprefix("torch.") not in cls.supported_dtypes:
            reasons.append(f"dtype {dtype} is not among {list(cls.supported_dtypes)}")
        if block_size is not None and not cls.supports_block_size(block_size):
            reasons.append(f"block size {block_size} is not supported")
        if not cls.supports_attn_type(attn_type):
            reasons.append(f"attention type {attn_type.value!r} is not supported")
        if has_sliding_window and not cls.supports_sliding_window():
            reasons.append("sliding windows are not supported")
        if has_logits_soft_cap and not cls.supports_logits_soft_cap():
            reasons.append("a soft cap on the logits is not supported")
        return reasons
