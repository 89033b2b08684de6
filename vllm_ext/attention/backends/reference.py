"""Attention written to be read: what the other backends have to compute, one request after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_ext.contracts.attention import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)
from vllm_ext.contracts.kv_cache import KVCacheLayout


class ReferenceBackend(AttentionBackend):
    """Any device, dtype, head size and block size, and every term that layers may ask for. Slow."""

    supported_dtypes = ("float16", "bfloat16", "float32", "float64")
    # Storing and attending are two things, and here they are two methods.
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        return "REFERENCE"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        return ReferenceImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        return ReferenceMetadataBuilder

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type in (AttentionType.DECODER, AttentionType.ENCODER_ONLY)

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_logits_soft_cap(cls) -> bool:
        return True

    @classmethod
    def supports_alibi_slopes(cls) -> bool:
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)


@dataclass(frozen=True, slots=True)
class ReferenceRequest:
    """One request of a step: ``tokens`` are its queries' places in the batch. They are the last ones of its tokens, of
    which all that one of them sees are in the cache's ``blocks``, in this order, at ``seen`` of what these hold."""

    tokens: slice
    seen: slice
    blocks: torch.Tensor


@dataclass(frozen=True, slots=True)
class ReferenceMetadata(AttentionMetadata):
    """One step."""

    requests: list[ReferenceRequest]


class ReferenceMetadataBuilder(AttentionMetadataBuilder[ReferenceMetadata]):
    """Takes the step's description apart by request."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> ReferenceMetadata:
        common = common_attn_metadata
        starts = common.query_start_loc_cpu.tolist()
        block_size = self.kv_cache_spec.block_size
        window = getattr(self.kv_cache_spec, "sliding_window", None)
        requests = []
        for i, seq_len in enumerate(common.seq_lens_cpu.tolist()):
            tokens = slice(starts[i], starts[i + 1])
            # Blocks that no query sees anything of may belong to another request: a NaN there is not ours.
            num_before = seq_len - (tokens.stop - tokens.start)
            first_seen = 0 if window is None else max(0, num_before + 1 - window)
            first_block = first_seen // block_size
            blocks = common.block_table_tensor[i, first_block : -(-seq_len // block_size)]
            seen = slice(first_seen - first_block * block_size, seq_len - first_block * block_size)
            requests.append(ReferenceRequest(tokens, seen, blocks))
        return ReferenceMetadata(requests)


class ReferenceImpl(AttentionImpl[ReferenceMetadata]):
    """One layer. The cache is ``[blocks, kv_heads, block_size, 2 * head_size]``, key before value."""

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        block_size = kv_cache.shape[2]
        block, offset = slot_mapping // block_size, slot_mapping % block_size
        kv_cache[block, :, offset] = torch.cat((key, value), dim=-1)

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: ReferenceMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn_metadata is None:
            return output
        for request in attn_metadata.requests:
            if self.attn_type == AttentionType.ENCODER_ONLY:
                # All the request's tokens are in this step.
                own = request.tokens
                output[own] = self._attend(query[own], key[own], value[own]).to(output.dtype)
                continue
            # [blocks, kv_heads, block_size, 2 * head_size] to [seen, kv_heads, 2 * head_size]
            content = kv_cache[request.blocks].transpose(1, 2).flatten(0, 1)[request.seen]
            keys, values = content.split(self.head_size, dim=-1)
            output[request.tokens] = self._attend(query[request.tokens], keys, values).to(output.dtype)
        return output

    def _attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of one request, in float32 whatever it is given (in float64 if it is given that).

        Args:
            query: ``[queries, heads, head_size]``, of the last tokens.
            keys, values: ``[seen, kv_heads, head_size]``, of the last tokens too.

        Returns: like ``query``.
        """
        wide = torch.promote_types(query.dtype, torch.float32)
        # Query heads come in groups, each of which reads one KV head.
        group = self.num_heads // self.num_kv_heads
        query, keys, values = query.to(wide), *(x.to(wide).repeat_interleave(group, dim=1) for x in (keys, values))

        logits = torch.einsum("qhd,khd->hqk", query, keys) * self.scale
        if self.logits_soft_cap is not None:
            logits = self.logits_soft_cap * torch.tanh(logits / self.logits_soft_cap)

        # How far a key stands before its query: 0 is the query's own token, negative numbers are tokens before it.
        num_queries, num_keys = len(query), len(keys)
        query_positions = torch.arange(num_keys - num_queries, num_keys, device=query.device)
        distance = torch.arange(num_keys, device=query.device) - query_positions.unsqueeze(1)
        if self.alibi_slopes is not None:
            slopes = torch.tensor(self.alibi_slopes, dtype=wide, device=query.device)
            logits = logits + slopes.view(-1, 1, 1) * distance

        sees_all = self.attn_type == AttentionType.ENCODER_ONLY
        is_hidden = torch.zeros_like(distance, dtype=torch.bool) if sees_all else distance > 0
        if self.sliding_window is not None:
            is_hidden = is_hidden | (distance <= -self.sliding_window)
        logits = logits.masked_fill(is_hidden, -torch.inf)

        if self.sinks is not None:
            # One more logit to share the softmax with; it has no value, so its weight is dropped.
            sinks = self.sinks.to(wide).view(-1, 1, 1).expand(-1, num_queries, 1)
            logits = torch.cat((logits, sinks), dim=-1)
        weights = logits.softmax(dim=-1)[..., :num_keys]
        return torch.einsum("hqk,khd->qhd", weights, values)
