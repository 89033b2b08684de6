"""The attention contract: a backend names its implementation, its metadata and its builder, and says what it serves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_ext.contracts.attention_impl import (
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)
from vllm_ext.contracts.kv_cache import KVCacheLayout, KVCacheSpec

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.platform import DeviceCapability

__all__ = [
    "AttentionBackend",
    "AttentionCGSupport",
    "AttentionImpl",
    "AttentionMetadata",
    "AttentionMetadataBuilder",
    "AttentionType",
    "CommonAttentionMetadata",
    "MultipleOf",
]


@dataclass(frozen=True, slots=True)
class MultipleOf:
    """Stands for all multiples of ``base`` in a list of sizes."""

    base: int


class AttentionBackend(ABC):
    """A way to compute attention over the paged cache; it is never instantiated. vLLM: ``AttentionBackend``.

    For each layer that is built, :meth:`validate_configuration` asks the methods ``supports_…``.
    """

    supported_dtypes: ClassVar[Sequence[torch.dtype | str]] = ("float16", "bfloat16", "float32")
    """Dtypes of query, key and value, or their names (vLLM: without float32)."""
    supported_kv_cache_dtypes: ClassVar[Sequence[str]] = ("auto", "float16", "bfloat16")
    """Dtypes of the cache by vLLM's names; empty for any. ``auto`` is that of key and value."""
    forward_includes_kv_cache_update: ClassVar[bool] = True
    """Whether :meth:`AttentionImpl.forward` stores key and value. If not, the layer calls
    :meth:`AttentionImpl.do_kv_cache_update` before it."""

    @staticmethod
    @abstractmethod
    def get_name() -> str:
        """The name under which it is listed; where it is registered, its name in ``AttentionBackendEnum``."""

    @staticmethod
    @abstractmethod
    def get_impl_cls() -> type[AttentionImpl[Any]]:
        """The class that computes one layer."""

    @staticmethod
    @abstractmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder[Any]]:
        """The class that makes the step's metadata."""

    @classmethod
    def full_cls_name(cls) -> tuple[str, str]:
        """Module and qualified name of the class: what it is known by in records of the choice."""
        return cls.__module__, cls.__qualname__

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: KVCacheSpec | None = None) -> Sequence[int | MultipleOf]:
        """Numbers of tokens that its kernels take as a block; a KV cache block holds a multiple of one of them.

        Args:
            kv_cache_spec: of the layers in question, only read; ``None``, which is what the engine gives, for any. An
                override without parameters is called as it is.
        """
        return [MultipleOf(1)]

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        """Whether a KV cache block may hold ``block_size`` tokens; ``None`` is a size still to be chosen."""
        sizes = cls.get_supported_kernel_block_sizes()
        bases = [size.base if isinstance(size, MultipleOf) else size for size in sizes]
        return block_size is None or any(block_size % base == 0 for base in bases)

    @staticmethod
    def get_supported_head_sizes() -> list[int]:
        """Head sizes it can compute, in numbers per head; empty for any."""
        return []

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        """Whether query, key and value heads may have ``head_size`` numbers."""
        sizes = cls.get_supported_head_sizes()
        return not sizes or head_size in sizes

    @classmethod
    def supports_dtype(cls, dtype: torch.dtype) -> bool:
        """Whether query, key and value may be of ``dtype``."""
        return dtype_name(dtype) in map(dtype_name, cls.supported_dtypes)

    @classmethod
    def supports_kv_cache_dtype(cls, kv_cache_dtype: str | None) -> bool:
        """Whether the cache may hold this dtype, by vLLM's name for it; ``None`` is ``auto``."""
        return not cls.supported_kv_cache_dtypes or (kv_cache_dtype or "auto") in cls.supported_kv_cache_dtypes

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        """Whether it serves layers of this :class:`AttentionType`."""
        return attn_type == AttentionType.DECODER

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Whether it serves layers whose tokens see the newest ``sliding_window`` tokens only, themselves included."""
        return False

    @classmethod
    def supports_sink(cls) -> bool:
        """Whether it serves layers with ``sinks``, a logit per head that has a share of the softmax and no value."""
        return False

    @classmethod
    def supports_logits_soft_cap(cls) -> bool:
        """Whether it serves layers with ``logits_soft_cap``: ``cap * tanh(x / cap)``. An extension of vLLM's
        contract.
        """
        return False

    @classmethod
    def supports_alibi_slopes(cls) -> bool:
        """Whether it serves layers with ``alibi_slopes``, which add ``slope * (position of key - position of query)``
        to the logits of a head; an extension of vLLM's contract."""
        return False

    @classmethod
    def is_mla(cls) -> bool:
        """Whether it computes multi-head latent attention, which layers of this engine are not, and nothing else."""
        return False

    @classmethod
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        """Whether it runs on a device of this capability; not asked where the platform has no such concept."""
        return True

    @classmethod
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: DeviceCapability | None,
    ) -> str | None:
        """Why it cannot serve a layer whose properties it supports one by one; ``None`` where it can.

        Args:
            head_size: numbers in a head.
            kv_cache_dtype: by vLLM's name; ``auto`` is ``dtype``, of query, key and value.
            block_size: tokens in a block of the KV cache; ``None`` while it is still to be chosen.
            use_mla, has_sink, use_sparse, use_mm_prefix: as in :class:`AttentionSelectorConfig`.
            device_capability: ``None`` where the platform has no such concept.
        """
        return None

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...] | None:
        """Layouts it can read, best first; ``None`` for any."""
        return None

    @classmethod
    def validate_configuration(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None = "auto",
        block_size: int | None = None,
        use_mla: bool = False,
        has_sink: bool = False,
        use_sparse: bool = False,
        use_mm_prefix: bool = False,
        use_per_head_quant_scales: bool = False,
        device_capability: DeviceCapability | None = None,
        attn_type: str = AttentionType.DECODER,
        has_sliding_window: bool = False,
        *args: Any,
        has_logits_soft_cap: bool = False,
        has_alibi_slopes: bool = False,
        **others: Any,
    ) -> list[str]:
        """Reasons why it cannot serve a layer; empty when it can.

        Called with every field of :class:`AttentionSelectorConfig` as a keyword, and ``device_capability``: those of
        :meth:`supports_combination`, and whether the layer has what a method ``supports_…`` is asked about. The order
        is vLLM's, whose further questions are passed over. ``has_logits_soft_cap`` and ``has_alibi_slopes``, which vLLM
        does not ask, are left out where an override does not take them; the answers of
        :meth:`supports_logits_soft_cap` and :meth:`supports_alibi_slopes` count all the same.
        """
        checks = [
            (cls.supports_head_size(head_size), f"head size {head_size} is not among {cls.get_supported_head_sizes()}"),
            (cls.supports_dtype(dtype), f"dtype {dtype} is not among {[*map(dtype_name, cls.supported_dtypes)]}"),
            (
                cls.supports_kv_cache_dtype(kv_cache_dtype),
                f"KV cache dtype {kv_cache_dtype!r} is not among {list(cls.supported_kv_cache_dtypes)}",
            ),
            (cls.supports_block_size(block_size), f"block size {block_size} is not supported"),
            (cls.supports_attn_type(attn_type), f"attention type {str(attn_type)!r} is not supported"),
            (cls.is_mla() == use_mla, "it computes multi-head latent attention (MLA) only"),
            (not has_sliding_window or cls.supports_sliding_window(), "sliding windows are not supported"),
            (not has_sink or cls.supports_sink(), "attention sinks are not supported"),
            (not has_logits_soft_cap or cls.supports_logits_soft_cap(), "a soft cap on the logits is not supported"),
            (not has_alibi_slopes or cls.supports_alibi_slopes(), "ALiBi slopes are not supported"),
            (
                device_capability is None or cls.supports_compute_capability(device_capability),
                f"compute capability {device_capability} is not supported",
            ),
        ]
        reasons = [reason for is_met, reason in checks if not is_met]
        combination = cls.supports_combination(
            head_size,
            dtype,
            kv_cache_dtype,
            block_size,
            use_mla,
            has_sink,
            use_sparse,
            use_mm_prefix,
            device_capability,
        )
        return [*reasons, combination] if combination else reasons


def dtype_name(dtype: torch.dtype | str) -> str:
    """``float32`` for ``torch.float32``, for its text and for its name."""
    return str(dtype).removeprefix("torch.")
