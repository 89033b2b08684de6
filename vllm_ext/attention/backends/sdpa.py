"""Attention with torch's scaled_dot_product_attention over gathered cache blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vllm_ext.attention.backends.sdpa_metadata import DecodeGroup, Prefill, SDPAMetadata, SDPAMetadataBuilder
from vllm_ext.contracts.attention import AttentionBackend, AttentionImpl
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
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        # A head's tokens of a block lie together, so that a gather of rows gives each head its context in one piece.
        return (KVCacheLayout.LBHNC,)


class SDPAImpl(AttentionImpl[SDPAMetadata]):
    """One layer. The cache is ``[blocks, kv_heads, block_size, 2 * head_size]``, key before value."""

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
        content = torch.cat((key, value), dim=-1).view(-1, 2 * self.head_size)
        # The padding of a gather reads blocks of other requests with weight 0: nothing there may be NaN or infinite.
        content.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        kv_cache.view(-1, 2 * self.head_size).index_copy_(0, attn_metadata.slot_rows, content)
        # A row for each block and KV head.
        cache_rows = kv_cache.view(-1, kv_cache.shape[2] * kv_cache.shape[3])
        for group in attn_metadata.decodes:
            self._decode(group, query, cache_rows, output)
        for prefill in attn_metadata.prefills:
            if prefill.tiles:
                self._prefill_with_context(prefill, query, cache_rows, output)
            else:
                self._prefill(prefill.tokens, query, key, value, output)
        return output

    def _decode(self, group: DecodeGroup, query: torch.Tensor, cache_rows: torch.Tensor, output: torch.Tensor) -> None:
        """One query token each of several requests, over their gathered blocks."""
        keys, values = self._gather(cache_rows, group.rows, group.workspace, group.num_reqs, group.seq_len)
        # The query heads of a KV head stand as if they were tokens: nothing is repeated for them.
        queries = query[group.tokens].view(group.num_reqs, self.num_kv_heads, -1, self.head_size)
        if group.as_products:
            scores = torch.matmul(queries * self.scale, keys.transpose(-1, -2))
            if group.mask is not None:
                scores.add_(group.mask)
            attended = torch.matmul(scores.softmax(dim=-1), values)
        else:
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=group.mask, scale=self.scale)
        output[group.tokens] = attended.reshape(group.num_reqs, self.num_heads, self.head_size)

    def _prefill(
        self, tokens: slice, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor
    ) -> None:
        """All tokens so far of one request; the cache need not be read."""
        queries, keys, values = (x[tokens].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=self.scale, enable_gqa=True
        )
        output[tokens] = attended[0].transpose(0, 1)

    def _prefill_with_context(
        self, prefill: Prefill, query: torch.Tensor, cache_rows: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Several query tokens of one request behind tokens that the cache has."""
        keys, values = self._gather(cache_rows, prefill.rows, prefill.workspace, 1, prefill.seq_len)
        for tokens, seen, mask in prefill.tiles:
            attended = F.scaled_dot_product_attention(
                query[tokens].transpose(0, 1).unsqueeze(0),
                keys[:, :, :seen],
                values[:, :, :seen],
                attn_mask=mask,
                scale=self.scale,
                enable_gqa=True,
            )
            output[tokens] = attended[0].transpose(0, 1)

    def _gather(
        self, cache_rows: torch.Tensor, rows: torch.Tensor, workspace: torch.Tensor, num_reqs: int, seq_len: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[reqs, kv_heads, seq_len, head_size]``, as views of ``workspace``."""
        torch.index_select(cache_rows, 0, rows, out=workspace)
        content = workspace.view(num_reqs, self.num_kv_heads, -1, 2 * self.head_size)[:, :, :seq_len]
        return content.split(self.head_size, dim=-1)
