"""The KV cache configuration: what workers report and what settings limit become blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.fake_engine import BYTES_PER_BLOCK_TOKEN, make_vllm_config

from vllm_ext.contracts.kv_cache import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheLayout, KVCacheSpec
from vllm_ext.engine.scheduling.kv_cache_config import (
    common_layout,
    common_spec,
    common_window,
    make_kv_cache_config,
    request_capacity,
)
from vllm_ext.errors import EngineError

SPEC = FullAttentionSpec(4, num_kv_heads=2, head_size=8, dtype=torch.float32)
LAYERS = {"layers.0": SPEC, "layers.1": SPEC}
BLOCK_BYTES = 4 * BYTES_PER_BLOCK_TOKEN
LBNHC, LBHNC, LHBNC = KVCacheLayout.LBNHC, KVCacheLayout.LBHNC, KVCacheLayout.LHBNC


def num_blocks(available_bytes: int, layers=LAYERS, **options: object) -> int:
    return make_kv_cache_config(make_vllm_config(**options), layers, LBNHC, available_bytes).num_blocks


def test_memory_limits_the_number_of_blocks():
    assert num_blocks(10 * BLOCK_BYTES + 1) == 10


def test_no_more_blocks_than_requests_can_use():
    assert num_blocks(1 << 40, max_num_seqs=3, max_model_len=9) == 3 * 3


def test_memory_that_the_user_set_is_used_whole():
    assert num_blocks(1 << 40, num_blocks=1000, max_num_seqs=1) == 1000


def test_memory_that_the_user_set_is_no_more_than_there_is():
    assert num_blocks(10 * BLOCK_BYTES, num_blocks=1000) == 10


def test_a_model_without_a_cache_has_blocks_to_count_with():
    config = make_kv_cache_config(make_vllm_config(max_num_seqs=3, max_model_len=9), {}, LBNHC, 0)

    assert (config.num_blocks, config.kv_cache_groups) == (9, ())


def test_memory_for_no_block_at_all_is_an_error_with_the_sizes():
    with pytest.raises(EngineError, match=rf"block of 4 tokens takes {BLOCK_BYTES} bytes over 2 layers, and 100 bytes"):
        num_blocks(100)


def test_where_the_largest_step_leaves_no_memory_the_error_says_what_makes_it_smaller():
    expected = (
        r"0 bytes are available beside a step of engine.max_num_batched_tokens \(1000\) tokens .*"
        r"or engine.max_num_batched_tokens or engine.block_size lower$"
    )
    with pytest.raises(EngineError, match=expected):
        num_blocks(0, max_num_batched_tokens=1000)

    with pytest.raises(EngineError, match=r"0 bytes are available \(.*, or engine.block_size lower$"):
        num_blocks(0, num_blocks=1)


def test_layers_that_store_the_same_share_a_group():
    other = FullAttentionSpec(4, num_kv_heads=1, head_size=8, dtype=torch.float32)
    config = make_kv_cache_config(make_vllm_config(), {"a": SPEC, "b": other, "c": SPEC}, LBNHC, 1 << 20)

    assert [(group.layer_names, group.kv_cache_spec) for group in config.kv_cache_groups] == [
        (("a", "c"), SPEC),
        (("b",), other),
    ]


@pytest.mark.parametrize(
    ("layouts", "chosen"),
    [
        ([None], LBNHC),
        ([[LHBNC, LBHNC]], LHBNC),
        ([[LHBNC, LBHNC], None, [LBHNC]], LBHNC),
        ([["LHBNC", "LBHNC"], None, [LBHNC]], LBHNC),
    ],
)
def test_the_layout_is_the_first_that_all_workers_can_read(layouts, chosen):
    assert common_layout(layouts) is chosen


def test_no_common_layout_is_an_error_with_each_workers_list():
    with pytest.raises(EngineError, match="worker 0: LHBNC; worker 1: LBHNC, LBNHC"):
        common_layout([[LHBNC], [LBHNC, LBNHC]])


@pytest.mark.parametrize(
    ("supported", "unknown"),
    [
        (["LHBNC", "LBNC"], r"'LBNC' is not one \(did you mean 'LHBNC'\?\)"),
        ("LHBNC", "'LHBNC' is not one"),
        ([None], "None is not one"),
        ([[]], r"\[\] is not one"),
    ],
)
def test_what_is_no_layout_is_an_error_with_the_worker_and_the_valid_names(supported, unknown):
    with pytest.raises(
        EngineError,
        match=rf"^worker 1 \(acme.Worker\) supports the KV cache layouts .*, and {unknown}; a list of these is valid: "
        "BHLNC, BLHNC, BLNHC, LBHNC, LBNHC, LHBNC",
    ):
        common_layout([None, supported], "acme.Worker")


def test_workers_have_to_report_the_same_layers():
    with pytest.raises(EngineError, match="workers 0 and 1 report different KV caches: 2 layers .*; 1 layers"):
        common_spec([LAYERS, {"layers.0": SPEC}], 4)


def test_blocks_have_the_size_that_the_layers_report():
    with pytest.raises(
        EngineError, match=r"'layers.0' reports KV cache blocks of 4 tokens.*set engine.block_size to 4"
    ):
        common_spec([LAYERS], 16)


def test_layers_with_and_without_a_window_come_in_one_group_where_the_platform_takes_one():
    windowed, plain = (FullAttentionSpec(16, 2, 8, torch.float32, window) for window in (4, None))
    other = FullAttentionSpec(16, 1, 8, torch.float32)
    spec = {"a": windowed, "b": plain, "c": other}
    config = make_vllm_config(block_size=16)

    def groups():
        made = make_kv_cache_config(config, spec, KVCacheLayout.LBNHC, 1 << 20)
        return [(group.layer_names, group.kv_cache_spec) for group in made.kv_cache_groups]

    assert groups() == [(("a",), windowed), (("b",), plain), (("c",), other)]
    config.scheduler_config.disable_hybrid_kv_cache_manager = True
    assert groups() == [(("a", "b"), plain), (("c",), other)]


def test_a_window_that_all_layers_have_stays_where_the_platform_takes_one_group():
    config = make_vllm_config()
    config.scheduler_config.disable_hybrid_kv_cache_manager = True

    def windows(*of_layers):
        spec = {str(i): replace(SPEC, sliding_window=window) for i, window in enumerate(of_layers)}
        groups = make_kv_cache_config(config, spec, LBNHC, 1 << 20).kv_cache_groups
        return [group.kv_cache_spec.sliding_window for group in groups]

    assert windows(7, 7) == [7]
    assert windows(7, 9) == windows(7, None) == [None]


def config_of(num_blocks: int, *windows: int | None) -> KVCacheConfig:
    groups = [KVCacheGroupSpec((str(i),), replace(SPEC, sliding_window=window)) for i, window in enumerate(windows)]
    return KVCacheConfig(num_blocks, tuple(groups))


def test_what_is_read_is_the_largest_window_or_all_where_a_layer_reads_all():
    unknown = KVCacheConfig(4, (*config_of(4, 3).kv_cache_groups, KVCacheGroupSpec(("x",), KVCacheSpec(4))))

    assert common_window(config_of(4, 3, 9, 5)) == 9
    assert common_window(config_of(4, 3, None)) is common_window(config_of(4)) is common_window(unknown) is None


@pytest.mark.parametrize("block_size", [1, 4, 5])
@pytest.mark.parametrize("num_blocks", [1, 2, 5])
def test_a_request_has_no_limit_where_each_token_and_what_it_sees_fit_into_the_cache(num_blocks, block_size):
    def fits(position: int, window: int) -> bool:
        first_seen = max(0, position + 1 - window)
        return position // block_size - first_seen // block_size + 1 <= num_blocks

    capacity = num_blocks * block_size
    for window in range(1, capacity + 3):
        always = all(fits(position, window) for position in range(3 * capacity + 3))
        expected = None if always else capacity
        assert request_capacity(config_of(num_blocks, window), block_size) == expected, window
    assert request_capacity(config_of(num_blocks, None), block_size) == capacity
