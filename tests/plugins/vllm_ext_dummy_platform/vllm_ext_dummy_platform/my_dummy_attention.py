"""The attention backend: one request after the other, over a cache ordered by block, layer, head, token, content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_ext import AttentionBackend, AttentionImpl, AttentionMetadata, AttentionMetadataBuilder
from vllm_ext.contracts.attention import AttentionType, CommonAttentionMetadata, MultipleOf
from vllm_ext.contracts.kv_cache import KVCacheLayout
from vllm_ext.contracts.platform import DeviceCapability
from vllm_ext_dummy_platform import calls


class MyDummyAttention(AttentionBackend):
    """Names the three classes below and what they can do."""

    supported_dtypes = (torch.float32, torch.bfloat16)
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        return "DUMMY_ATTN"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl[Any]]:
        return MyDummyAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder[Any]]:
        return MyDummyAttentionMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[int | MultipleOf]:
        return [MultipleOf(4)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.BLHNC,)

    @classmethod
    def full_cls_name(cls) -> tuple[str, str]:
        """Under this name it is spoken of in records of the choice."""
        return "vllm_ext_dummy_platform.my_dummy_attention", "MyDummyAttention"

    # What it can serve, asked for each layer -------------------------------------------------------------------------

    @classmethod
    def validate_configuration(cls, **layer: Any) -> list[str]:
        reasons = super().validate_configuration(**layer)
        return [*reasons, "prefixes that see themselves are not supported"] if layer.get("use_mm_prefix") else reasons

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        return block_size is None or (block_size <= 1024 and super().supports_block_size(block_size))

    @staticmethod
    def get_supported_head_sizes() -> list[int]:
        return list(range(2, 514, 2))

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size in cls.get_supported_head_sizes()

    @classmethod
    def supports_dtype(cls, dtype: torch.dtype) -> bool:
        return super().supports_dtype(dtype)

    @classmethod
    def supports_kv_cache_dtype(cls, kv_cache_dtype: str | None) -> bool:
        """The cache holds what the layer computes with."""
        return kv_cache_dtype in (None, "auto")

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type in (AttentionType.DECODER, AttentionType.ENCODER_ONLY)

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        return False

    @classmethod
    def supports_logits_soft_cap(cls) -> bool:
        return False

    @classmethod
    def supports_alibi_slopes(cls) -> bool:
        return False

    @classmethod
    def is_mla(cls) -> bool:
        return False

    @classmethod
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        return capability >= DeviceCapability(1, 0)

    @classmethod
    def supports_combination(
        cls, head_size: int, dtype: torch.dtype, kv_cache_dtype: str | None, block_size: int | None, *others: Any
    ) -> str | None:
        too_much = dtype is torch.float32 and head_size > 256
        return "heads of more than 256 numbers are computed in bfloat16 only" if too_much else None


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """One request of a step: its query tokens are ``[first, last)`` of the flat batch."""

    first: int
    last: int
    seq_len: int
    """Tokens in the cache after this step, the query tokens among them."""
    blocks: torch.Tensor
    """Numbers of the cache blocks that hold them, in order."""

    def num_unseen(self, window: int | None) -> int:
        """Tokens before all that the query tokens see; their blocks may be in the hands of other requests."""
        num_before = self.seq_len - (self.last - self.first)
        return 0 if window is None else max(0, num_before + 1 - window)


@dataclass(frozen=True, slots=True)
class MyDummyAttentionMetadata(AttentionMetadata):
    """One step, for all layers."""

    requests: list[RequestSpan]


class MyDummyAttentionMetadataBuilder(AttentionMetadataBuilder[MyDummyAttentionMetadata]):
    """Does once per step what every layer would otherwise do again."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> MyDummyAttentionMetadata:
        calls["attention_metadata"] += 1
        common = common_attn_metadata
        block_size = self.kv_cache_spec.block_size
        starts = common.query_start_loc_cpu.tolist()
        requests = []
        for row, seq_len in enumerate(common.seq_lens_cpu.tolist()):
            num_blocks = -(-seq_len // block_size)
            blocks = common.block_table_tensor[row, :num_blocks]
            requests.append(RequestSpan(starts[row], starts[row + 1], seq_len, blocks))
        return MyDummyAttentionMetadata(requests)


class MyDummyAttentionImpl(AttentionImpl[MyDummyAttentionMetadata]):
    """Causal attention of one layer, with query heads that share KV heads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for option in ("alibi_slopes", "logits_soft_cap", "kv_sharing_target_layer_name"):
            if getattr(self, option) is not None:
                raise ValueError(f"attention backend DUMMY_ATTN does not compute {option}")

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        if not act_dtype.is_floating_point:
            raise ValueError(f"attention backend DUMMY_ATTN does not compute in {act_dtype}")

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        calls["kv_cache_update"] += 1
        # kv_cache is [blocks, heads, tokens of a block, key and value]
        block_size = kv_cache.shape[2]
        kv_cache[slot_mapping // block_size, :, slot_mapping % block_size] = torch.cat((key, value), dim=-1)

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: MyDummyAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn_metadata is None:  # a profiling run: there is no cache yet
            return output
        calls["attention"] += 1
        for request in attn_metadata.requests:
            rows = slice(request.first, request.last)
            if self.attn_type == AttentionType.ENCODER_ONLY:
                # Nothing is stored: all tokens of the request are here.
                content = torch.cat((key[rows], value[rows]), dim=-1).transpose(0, 1)
            else:
                # [blocks, kv_heads, tokens of a block, key and value]
                content = kv_cache[request.blocks].transpose(0, 1).flatten(1, 2)
                content = content[:, request.num_unseen(self.sliding_window) : request.seq_len]
            output[rows] = self._attend(query[rows], content)
        return output

    def _attend(self, query: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """Attention of one request: query ``[queries, heads, head]``, content ``[kv_heads, tokens, key and value]``."""
        num_queries, seq_len = query.shape[0], content.shape[1]
        # Query heads come in groups, each of which reads one KV head.
        content = content.repeat_interleave(self.num_heads // self.num_kv_heads, dim=0)
        keys, values = content.split(self.head_size, dim=-1)
        scores = query.transpose(0, 1) @ keys.transpose(1, 2) * self.scale
        # The query tokens are the last of the sequence; none may look at tokens after itself, or before its window.
        query_positions = torch.arange(seq_len - num_queries, seq_len, device=query.device)
        key_positions = torch.arange(seq_len, device=query.device)
        is_hidden = key_positions > query_positions[:, None]
        if self.attn_type == AttentionType.ENCODER_ONLY:
            is_hidden = torch.zeros_like(is_hidden)
        if self.sliding_window is not None:
            is_hidden |= key_positions <= query_positions[:, None] - self.sliding_window
        scores = scores.masked_fill(is_hidden, float("-inf"))
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        return (weights @ values).transpose(0, 1)
