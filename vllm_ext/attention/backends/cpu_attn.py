"""Attention for processors: decoding reads the cache in place, in a compiled kernel; prompts go through SDPA."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from vllm_ext import _custom_ops
from vllm_ext.attention.backends.sdpa import SDPABackend, SDPAImpl
from vllm_ext.attention.backends.sdpa_metadata import Prefill, SDPAMetadata, SDPAMetadataBuilder
from vllm_ext.contracts.attention import (
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadata,
    CommonAttentionMetadata,
)
from vllm_ext.contracts.kv_cache import KVCacheSpec
from vllm_ext.contracts.vllm_config import VllmConfig


@dataclass(slots=True)
class CPUAttentionMetadata(AttentionMetadata):
    """One step. ``tokens`` and ``rows``, int64 ``[decoding]``: query tokens of requests that have one, and which."""

    slot_mapping: torch.Tensor
    tokens: torch.Tensor
    rows: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    prefills: list[Prefill]


class CPUAttentionMetadataBuilder(SDPAMetadataBuilder):
    """Splits a step into requests that decode and prompts; only the latter need a gather."""

    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(
        self, kv_cache_spec: KVCacheSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._all_reqs = torch.arange(vllm_config.scheduler_config.max_num_seqs)

    def build(  # type: ignore[override]
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata | SDPAMetadata:
        common = common_attn_metadata
        if not common.causal:
            return super().build(common_prefix_len, common)
        lens = common.seq_lens_cpu
        starts = common.query_start_loc_cpu.long()
        if common.max_query_len == 1:
            tokens = rows = self._all_reqs[: common.num_reqs]
            prefills = []
        else:
            counts = starts.diff()
            rows = (counts == 1).nonzero().view(-1)
            tokens = starts[rows]
            prefills = [
                self._prefill(common, req, start, end - start, int(lens[req]))
                for req, (start, end) in enumerate(pairwise(starts.tolist()))
                if end - start > 1
            ]
        table = common.block_table_tensor
        return CPUAttentionMetadata(common.slot_mapping, tokens, rows, table, common.seq_lens, prefills)


class CPUAttentionImpl(SDPAImpl):
    """One layer. The cache is ``[blocks, kv_heads, block_size, 2 * head_size]``, key before value."""

    def _store(  # type: ignore[override]
        self, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, metadata: CPUAttentionMetadata
    ) -> None:
        _custom_ops.reshape_and_cache(key, value, kv_cache, metadata.slot_mapping)

    def _decode_all(  # type: ignore[override]
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        cache_rows: torch.Tensor,
        metadata: CPUAttentionMetadata,
        output: torch.Tensor,
    ) -> None:
        if len(metadata.tokens):
            _custom_ops.paged_attention_decode(
                output,
                query,
                kv_cache,
                metadata.block_table,
                metadata.seq_lens,
                metadata.tokens,
                metadata.rows,
                self.scale,
                self.sliding_window or 0,
                self.logits_soft_cap or 0.0,
            )


class CPUAttentionBackend(SDPABackend):
    """Processors with the compiled kernels, in float32; any head size and block size."""

    supported_dtypes = ("float32",)

    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        return CPUAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[SDPAMetadataBuilder]:
        return CPUAttentionMetadataBuilder

    @classmethod
    def supports_sink(cls) -> bool:
        return False

    @classmethod
    def supports_alibi_slopes(cls) -> bool:
        return False

    @classmethod
    def validate_configuration(cls, **layer: Any) -> list[str]:
        reasons = super().validate_configuration(**layer)
        missing = _custom_ops.why_missing()
        return reasons if missing is None else [*reasons, f"there are no compiled kernels: {missing}"]
