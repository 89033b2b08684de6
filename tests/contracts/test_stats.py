"""What stat loggers that are written for vLLM read of the numbers they are given."""

from __future__ import annotations

import dataclasses

from vllm_ext.contracts.stats import IterationStats, SchedulerStats


def test_of_parts_that_the_engine_has_not_there_is_vllms_value_for_nothing():
    stats = SchedulerStats()

    optional = ("spec_decoding_stats", "kv_connector_stats", "ec_connector_stats", "connector_prefix_cache_stats")
    assert [getattr(stats, name) for name in (*optional, "cudagraph_stats", "perf_stats", "iteration_details")] == [
        None
    ] * 7
    assert dict(stats.running_lora_adapters) == dict(stats.waiting_lora_adapters) == {}
    assert list(stats.kv_cache_eviction_events) == list(stats.num_kv_fetch_reqs_by_stage.values()) == []
    assert (stats.num_waiting_reqs + stats.num_skipped_waiting_reqs, stats.step_counter, stats.current_wave) == (
        0,
        0,
        0,
    )
    assert IterationStats().num_corrupted_reqs == 0


def test_these_are_no_numbers_that_are_sent_or_written():
    names = {field.name for cls in (SchedulerStats, IterationStats) for field in dataclasses.fields(cls)}

    assert not names & {"spec_decoding_stats", "running_lora_adapters", "num_corrupted_reqs", "step_counter"}
