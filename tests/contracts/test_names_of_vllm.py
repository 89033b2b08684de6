"""What a vendor's worker, model runner and attention backend read of the small records of the contracts."""

from __future__ import annotations

import torch
from support.fake_engine import make_vllm_config

from vllm_ext.contracts.attention import CommonAttentionMetadata
from vllm_ext.contracts.kv_cache import FullAttentionSpec, KVCacheGroupSpec
from vllm_ext.contracts.lora_request import LoRARequest
from vllm_ext.contracts.scheduler_output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_ext.contracts.stats import PrefixCacheStats

SPEC = FullAttentionSpec(16, num_kv_heads=2, head_size=8, dtype=torch.float32)


def test_a_layers_cache_has_vllms_sizes():
    config = make_vllm_config(max_model_len=100)

    assert SPEC.real_page_size_bytes == SPEC.page_size_bytes == 2 * 16 * 2 * 8 * 4
    assert (SPEC.head_size_v, SPEC.max_num_blocks_per_req(config, 33)) == (8, 3)
    assert SPEC.max_memory_usage_bytes(config) == 7 * SPEC.page_size_bytes
    assert SPEC.copy_with_new_block_size(4) == FullAttentionSpec(4, 2, 8, torch.float32)
    assert (SPEC.attention_chunk_size, SPEC.page_size_padded, KVCacheGroupSpec((), SPEC).is_eagle_group) == (
        None,
        None,
        False,
    )


def test_a_step_can_be_described_again_for_other_requests():
    lens, starts = torch.tensor([5, 9], dtype=torch.int32), torch.tensor([0, 2, 3], dtype=torch.int32)
    empty = torch.zeros(2, 1, dtype=torch.int32)
    step = CommonAttentionMetadata(starts, starts, lens, lens, 2, 3, 2, 9, empty, torch.zeros(3, dtype=torch.int64))

    assert step.num_computed_tokens_cpu.tolist() == step.compute_num_computed_tokens().tolist() == [3, 8]
    assert step.seq_lens_cpu_upper_bound is lens
    assert step.replace(causal=False).causal is False
    assert step.causal is True
    assert (step.dcp_local_seq_lens, step.encoder_seq_lens, step.logits_indices_padded) == (None, None, None)


def test_an_adapter_has_vllms_shorter_names():
    adapter = LoRARequest("sql", 3, "/adapters/sql")

    assert (adapter.name, adapter.adapter_id, adapter.path) == ("sql", 3, "/adapters/sql")


def test_the_prefix_caches_numbers_say_of_no_reset():
    stats = PrefixCacheStats(1, 2, 3)

    assert (stats.reset, stats.preempted_requests, stats.preempted_queries, stats.preempted_hits) == (False, 0, 0, 0)


def test_a_step_for_warming_up_is_made_by_vllms_keywords():
    new = NewRequestData(
        req_id="warm-up",
        prompt_token_ids=[0] * 4,
        mm_features=[],
        sampling_params=None,
        pooling_params=None,
        block_ids=([0],),
        num_computed_tokens=0,
        lora_request=None,
        prompt_embeds=None,
        prefill_token_ids=None,
    )
    step = SchedulerOutput(
        scheduled_new_reqs=[new],
        scheduled_cached_reqs=CachedRequestData.make_empty(),
        num_scheduled_tokens={"warm-up": 4},
        total_num_scheduled_tokens=4,
        scheduled_spec_decode_tokens={},
        scheduled_encoder_inputs={},
        num_common_prefix_blocks=[0],
        finished_req_ids=set(),
        free_encoder_mm_hashes=[],
        kv_connector_metadata=None,
    )

    assert (new.prompt_len, step.scheduled_cached_reqs.num_reqs) == (4, 0)
    assert step.num_common_prefix_blocks == [0]


def test_a_request_is_in_its_context_phase_until_it_has_a_token():
    cached = CachedRequestData(["a", "b"], [None, None], [4, 9], [0, 3])

    assert [cached.is_context_phase(name) for name in ("a", "b", "c")] == [True, False, False]
