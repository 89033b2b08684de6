"""Attention for processors: compiled kernels read the cache in place, one for tokens that decode, one for prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_ext import _custom_ops
from vllm_ext.attention.backends.sdpa import SDPABackend, SDPAImpl
from vllm_ext.attention.backends.sdpa_metadata import SDPAMetadata, SDPAMetadataBuilder
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
    """One step. ``tokens`` and ``rows``, int64 ``[decoding]``: query tokens of requests that decode, and which.

    ``prompts``, int64: the other requests, the longest first.
    """

    slot_mapping: torch.Tensor
    tokens: torch.Tensor
    rows: torch.Tensor
    prompts: torch.Tensor
    query_start_loc: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor


class CPUAttentionMetadataBuilder(SDPAMetadataBuilder):
    """Splits a step into requests that decode and prompts. Without a cache, requests are attended to as SDPA does."""

    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(
        self, kv_cache_spec: KVCacheSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._all_reqs = torch.arange(vllm_config.scheduler_config.max_num_seqs, device=device)

    def build(  # type: ignore[override]
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata | SDPAMetadata:
        common = common_attn_metadata
        if not common.causal:
            return super().build(common_prefix_len, common)
        starts, lens = common.query_start_loc, common.seq_lens
        prefilling = common.is_prefilling
        if common.max_query_len == 1 and (prefilling is None or not prefilling.any()):
            tokens = rows = self._all_reqs[: common.num_reqs]
            prompts = rows[:0]
        else:
            # The two kernels add up in different orders: a prompt is the same however it was cut, so its last token
            # is computed as the others are, even if it comes alone.
            is_prompt = starts.diff() > 1
            is_prompt = is_prompt if prefilling is None else is_prompt | prefilling
            rows = (~is_prompt).nonzero().view(-1)
            tokens = starts[rows].long()
            prompts = is_prompt.nonzero().view(-1)
            prompts = prompts[lens[prompts].argsort(descending=True)]
        return CPUAttentionMetadata(common.slot_mapping, tokens, rows, prompts, starts, common.block_table_tensor, lens)


class CPUAttentionImpl(SDPAImpl):
    """One layer. The cache is ``[blocks, kv_heads, block_size, 2 * head_size]``, key before value."""

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | SDPAMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if not isinstance(attn_metadata, CPUAttentionMetadata):
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output)
        step = attn_metadata
        _custom_ops.reshape_and_cache(key, value, kv_cache, step.slot_mapping)
        terms = (self.scale, self.sliding_window or 0, self.logits_soft_cap or 0.0)
        cached = (kv_cache, step.block_table, step.seq_lens)
        if len(step.tokens):
            _custom_ops.paged_attention_decode(output, query, *cached, step.tokens, step.rows, *terms)
        if len(step.prompts):
            _custom_ops.paged_attention_prefill(output, query, *cached, step.query_start_loc, step.prompts, *terms)
        return output


class CPUAttentionBackend(SDPABackend):
    """Processors with the compiled kernels, in float32, bfloat16 or float16; any head size and block size."""

    supported_dtypes = ("float16", "bfloat16", "float32")

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
    def validate_configuration(cls, *args: Any, **layer: Any) -> list[str]:
        reasons = super().validate_configuration(*args, **layer)
        missing = _custom_ops.why_missing()
        return reasons if missing is None else [*reasons, f"there are no compiled kernels: {missing}"]
