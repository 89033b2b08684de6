"""Attention with torch's scaled_dot_product_attention over gathered cache blocks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from vllm_ext.attention.backends.sdpa_metadata import DecodeGroup, Prefill, SDPAMetadata, SDPAMetadataBuilder
from vllm_ext.contracts.attention import AttentionBackend, AttentionImpl, AttentionType
from vllm_ext.contracts.kv_cache import KVCacheLayout


class SDPABackend(AttentionBackend):
    """Any device that has torch's scaled_dot_product_attention; any head size and block size."""

    @staticmethod
    def get_name() -> str:
        return "SDPA"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        return SDPAImpl

    @staticmethod
    def get_builder_cls() -> type[SDPAMetadataBuilder]:
        return SDPAMetadataBuilder

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
        # A head's tokens of a block lie together, so that a gather of rows gives each head its context in one piece.
        return (KVCacheLayout.LBHNC,)


class SDPAImpl(AttentionImpl[SDPAMetadata]):
    """One layer. The cache is ``[blocks, kv_heads, block_size, 2 * head_size]``, key before value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slopes = None if self.alibi_slopes is None else torch.tensor(self.alibi_slopes, dtype=torch.float32)
        self._has_terms = any(term is not None for term in (self.logits_soft_cap, self._slopes, self.sinks))
        """Whether it computes what the fused kernel does not."""

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: SDPAMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn_metadata is None:
            return output
        is_causal = self.attn_type != AttentionType.ENCODER_ONLY
        for tokens in attn_metadata.whole:
            self._attend_to_own(tokens, query, key, value, output, is_causal)
        if not is_causal:
            return output
        self._store(key, value, kv_cache, attn_metadata)
        # A row for each block and KV head.
        cache_rows = kv_cache.view(-1, kv_cache.shape[2] * kv_cache.shape[3])
        for group in attn_metadata.decodes:
            self._decode(group, query, cache_rows, output)
        for prefill in attn_metadata.prefills:
            self._prefill(prefill, query, cache_rows, output)
        return output

    def _store(self, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, metadata: SDPAMetadata) -> None:
        """Put the step's keys and values into the cache."""
        content = torch.cat((key, value), dim=-1).view(-1, 2 * self.head_size)
        # The padding of a gather reads blocks of other requests with weight 0: nothing there may be NaN or infinite.
        content.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        kv_cache.view(-1, 2 * self.head_size).index_copy_(0, metadata.slot_rows, content)

    def _decode(self, group: DecodeGroup, query: torch.Tensor, cache_rows: torch.Tensor, output: torch.Tensor) -> None:
        """One query token each of several requests, over their gathered blocks."""
        torch.index_select(cache_rows, 0, group.rows, out=group.workspace)
        keys, values, mask = group.keys, group.values, group.mask
        # The query heads of a KV head stand as if they were tokens: nothing is repeated for them.
        shape = (*keys.shape[:-2], -1, self.head_size)
        if self._has_terms:
            attended = self._attend_with_terms(query[group.tokens].view(shape), keys, values, mask, group.distances)
        elif group.as_products:
            queries, transposed = (query[group.tokens] * self.scale).view(shape), keys.transpose(1, 2)
            scores = torch.bmm(queries, transposed) if mask is None else torch.baddbmm(mask, queries, transposed)
            attended = torch.bmm(scores.softmax(dim=-1), values)
        else:
            queries = query[group.tokens].view(shape)
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self.scale)
        output[group.tokens] = attended.view(-1, self.num_heads, self.head_size)

    def _attend_to_own(
        self,
        tokens: slice,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        is_causal: bool,
    ) -> None:
        """All tokens so far of one request; the cache need not be read."""
        queries, keys, values = (x[tokens].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=is_causal, scale=self.scale, enable_gqa=True
        )
        output[tokens] = attended[0].transpose(0, 1)

    def _prefill(self, prefill: Prefill, query: torch.Tensor, cache_rows: torch.Tensor, output: torch.Tensor) -> None:
        """Several query tokens of one request, over its gathered blocks."""
        torch.index_select(cache_rows, 0, prefill.rows, out=prefill.workspace)
        for tokens, seen, mask in prefill.tiles:
            queries, keys, values = (
                query[tokens].transpose(0, 1).unsqueeze(0),
                prefill.keys[:, :, seen],
                prefill.values[:, :, seen],
            )
            if not self._has_terms:
                attended = F.scaled_dot_product_attention(
                    queries, keys, values, attn_mask=mask, scale=self.scale, enable_gqa=True
                )
            else:
                # [1, KV heads, query heads of each, tokens, head size]
                grouped = queries.unflatten(1, (self.num_kv_heads, -1))
                distances = None if self._slopes is None else _distances(mask.shape[0], mask.shape[1], query.device)
                attended = self._attend_with_terms(
                    grouped, keys.unsqueeze(2), values.unsqueeze(2), mask, distances
                ).flatten(1, 2)
            output[tokens] = attended[0].transpose(0, 1)

    def _attend_with_terms(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        distances: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention by plain products, as the fused kernel knows neither soft cap nor slopes nor sinks.

        The logits are float32; their first three dimensions are request, KV head, and query head within it.
        """
        cap = self.logits_soft_cap
        scores = (queries.float() @ keys.float().transpose(-1, -2)).mul_(
            self.scale if cap is None else self.scale / cap
        )
        if cap is not None:
            scores.tanh_().mul_(cap)
        if self._slopes is not None and distances is not None:
            scores += self._by_head(self._slopes, scores) * distances
        if mask is not None:
            scores += mask
        if self.sinks is None:
            weights = scores.softmax(dim=-1)
        else:
            sinks = self._by_head(self.sinks.float(), scores).expand(*scores.shape[:-1], 1)
            weights = torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]
        return weights.to(values.dtype) @ values

    def _by_head(self, numbers: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``[num_heads]`` in a shape that goes with ``scores``."""
        return numbers.view(1, self.num_kv_heads, -1, *(1 for _ in scores.shape[3:]))


def _distances(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """float32 ``[num_queries, num_keys]``: how far keys stand before queries, as numbers up to 0; both end alike."""
    queries = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
    return (torch.arange(num_keys, device=device) - queries).float()
