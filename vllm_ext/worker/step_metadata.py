"""What attention needs to know of a step: the layers' metadata builders, and what these make of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from vllm_ext.contracts.attention import (
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheSpec
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import ContractError, dotted_path
from vllm_ext.worker.input_batch import InputBatch, StepInputs
from vllm_ext.worker.step_buffers import StepBuffers


class StepMetadata:
    """A metadata builder for each group of layers and backend.

    Args:
        kv_cache_config: groups the layers that have a KV cache.
        layers: all attention layers, by name.
    """

    def __init__(
        self,
        kv_cache_config: KVCacheConfig,
        layers: Mapping[str, Any],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        self._layers = layers
        self._vllm_config = vllm_config
        self._device = device
        # Of the layers, since the spec of a group may leave their sliding windows out.
        specs = {name: layer.get_kv_cache_spec(vllm_config) for name, layer in layers.items()}
        self._groups = [
            (index, *made)
            for index, group in enumerate(kv_cache_config.kv_cache_groups)
            for made in self._make({name: specs[name] for name in group.layer_names})
        ]
        encoders = [name for name, spec in specs.items() if spec is None]
        self._encoders = self._make({name: layers[name].get_builder_spec(vllm_config) for name in encoders})

    def _make(self, specs: Mapping[str, KVCacheSpec]) -> list[tuple[tuple[str, ...], AttentionMetadataBuilder]]:
        """Builders for layers, each with those that it serves."""
        alike: dict[tuple[type[AttentionMetadataBuilder], KVCacheSpec], list[str]] = {}
        for name, spec in specs.items():
            alike.setdefault((self._layers[name].attn_backend.get_builder_cls(), spec), []).append(name)
        return [
            (tuple(names), builder_cls(spec, names, self._vllm_config, self._device))
            for (builder_cls, spec), names in alike.items()
        ]

    def graph_support(self) -> AttentionCGSupport:
        """Which steps may be static graphs, as far as all layers with a KV cache allow it."""
        support = [
            builder.get_cudagraph_support(self._vllm_config, builder.kv_cache_spec) for *_, builder in self._groups
        ]
        return min(support, default=AttentionCGSupport.NEVER)

    def build(
        self, step: StepInputs, batch: InputBatch, buffers: StepBuffers, block_sizes: list[int]
    ) -> tuple[dict[str, AttentionMetadata], dict[str, torch.Tensor]]:
        """The step's attention metadata and slot mapping, by layer name; built once per group of layers.

        Raises:
            ContractError: a builder made nothing.
        """
        starts, lens = (torch.from_numpy(a.astype(np.int32)) for a in (step.query_start_loc, step.seq_lens))
        common = partial(
            CommonAttentionMetadata,
            query_start_loc=buffers.put("query_start_loc", step.query_start_loc),
            query_start_loc_cpu=starts,
            seq_lens=buffers.put("seq_lens", step.seq_lens),
            seq_lens_cpu=lens,
            num_reqs=len(step.req_ids),
            num_actual_tokens=len(step.input_ids),
            max_query_len=int(np.diff(step.query_start_loc).max()),
            max_seq_len=int(step.seq_lens.max()),
            is_prefilling=torch.from_numpy(step.is_prefilling),
        )
        metadata: dict[str, AttentionMetadata] = {}
        slots: dict[str, torch.Tensor] = {}
        for group, layer_names, builder in self._groups:
            table, slot_mapping = batch.block_table(group, step, block_sizes[group])
            of_group = common(
                block_table_tensor=buffers.put(f"block_table {group}", table),
                slot_mapping=buffers.put(f"slot_mapping {group}", slot_mapping),
            )
            metadata.update(dict.fromkeys(layer_names, _built(builder, of_group)))
            slots.update(dict.fromkeys(layer_names, of_group.slot_mapping))
        for layer_names, builder in self._encoders:
            of_encoder = common(
                block_table_tensor=torch.zeros((len(step.req_ids), 1), dtype=torch.int32, device=self._device),
                slot_mapping=torch.zeros(len(step.input_ids), dtype=torch.int64, device=self._device),
                causal=False,
            )
            metadata.update(dict.fromkeys(layer_names, _built(builder, of_encoder)))
            slots.update(dict.fromkeys(layer_names, of_encoder.slot_mapping))
        return metadata, slots


def _built(builder: AttentionMetadataBuilder, common: CommonAttentionMetadata) -> AttentionMetadata:
    """Without metadata a layer takes the step for one that only measures memory, and attends to nothing."""
    metadata: AttentionMetadata | None = builder.build(0, common)
    if metadata is None:
        raise ContractError(
            f"build() of attention metadata builder {dotted_path(type(builder))} returned None; it has to return the "
            "step's metadata, which its backend's get_impl_cls() reads"
        )
    return metadata
