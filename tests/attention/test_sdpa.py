"""The SDPA backend against attention written out in float64, over a cache of scattered blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_step import HOST, TOLERANCE, Setup, assert_attends

from vllm_ext.attention.backends import sdpa_metadata
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.contracts.attention import AttentionType
from vllm_ext.contracts.kv_cache import FullAttentionSpec
from vllm_ext.contracts.vllm_config import HFConfig, ModelConfig, VllmConfig


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([(0, 7), (0, 1), (0, 12)], id="whole prompts"),
        pytest.param([(6, 1), (6, 1), (6, 1)], id="decodes of one length"),
        pytest.param([(3, 1), (17, 1), (8, 1)], id="decodes of several lengths"),
        pytest.param([(9, 5), (1, 2), (16, 4)], id="chunks of prompts"),
        pytest.param([(0, 5), (11, 1), (4, 6), (2, 1), (0, 1)], id="all in one step"),
    ],
)
def test_every_kind_of_step(requests, heads, dtype):
    assert_attends(Setup(requests, *heads, dtype=dtype))


@pytest.mark.parametrize("block_size", [1, 3, 16, 128])
def test_every_block_size(block_size):
    assert_attends(Setup([(0, 9), (20, 1), (30, 3), (31, 1)], block_size=block_size))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [1, 3, 4, 5, 9, 100], ids=lambda window: f"window {window}")
@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([(0, 7), (0, 1), (0, 12)], id="whole prompts"),
        pytest.param([(6, 1), (6, 1), (6, 1)], id="decodes of one length"),
        pytest.param([(3, 1), (37, 1), (8, 1)], id="decodes of several lengths"),
        pytest.param([(9, 5), (1, 2), (16, 4)], id="chunks of prompts"),
        pytest.param([(0, 5), (11, 1), (4, 16), (2, 1), (0, 1)], id="all in one step"),
    ],
)
def test_a_token_sees_its_window_and_no_more(requests, window, dtype):
    assert_attends(Setup(requests, window=window, dtype=dtype))


def test_what_lies_before_the_window_is_not_even_gathered():
    setup = Setup([(41, 1), (33, 5)], window=6)
    spec = FullAttentionSpec(4, 2, 8, torch.float32, 6)
    config = VllmConfig(ModelConfig("", HFConfig({}), torch.float32, 64, ""))

    metadata = SDPABackend.get_builder_cls()(spec, [], config, HOST).build(0, setup.common_metadata())

    # Tokens 36 to 41, and 28 to 37: blocks 9 and 10, and 7 to 9, of two heads each.
    assert (len(metadata.decodes[0].rows), len(metadata.prefills[0].rows)) == (2 * 2, 3 * 2)
    assert_attends(setup)


@pytest.mark.parametrize("window", [None, 5])
def test_a_window_is_computed_in_tiles_too(monkeypatch, window):
    monkeypatch.setattr(sdpa_metadata, "_TILE", 4)

    assert_attends(Setup([(5, 11), (0, 19), (8, 1)], window=window))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=["mha", "gqa", "mqa"])
def test_logits_are_capped(heads, window, dtype):
    requests = [(0, 5), (11, 1), (4, 6), (2, 1), (0, 1)]

    assert_attends(Setup(requests, *heads, dtype=dtype, window=window, soft_cap=0.2))


@settings(max_examples=60)
@given(
    requests=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=8),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_size=st.sampled_from([4, 8, 20]),
    block_size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    window=st.none() | st.integers(1, 50),
    soft_cap=st.none() | st.floats(0.1, 10),
)
def test_random_mixtures(requests, kv_heads, group, head_size, block_size, seed, window, soft_cap):
    setup = Setup(requests, kv_heads * group, kv_heads, head_size, block_size, seed=seed)
    setup.window, setup.soft_cap = window, soft_cap

    assert_attends(setup)


def test_a_long_prefill_is_computed_in_tiles(monkeypatch):
    monkeypatch.setattr(sdpa_metadata, "_TILE", 4)
    setup = Setup([(5, 11), (8, 1)])
    builder = SDPABackend.get_builder_cls()(
        FullAttentionSpec(4, 2, 8, torch.float32),
        [],
        VllmConfig(ModelConfig("", HFConfig({}), torch.float32, 64, "")),
        HOST,
    )

    [prefill] = builder.build(0, setup.common_metadata()).prefills

    assert [tokens for tokens, _, _ in prefill.tiles] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert_attends(setup)


@pytest.mark.parametrize("as_products", [True, False])
def test_short_and_long_contexts_are_decoded_alike(monkeypatch, as_products):
    monkeypatch.setattr(sdpa_metadata, "_PRODUCTS_MAX_LEN", 18 if as_products else 17)
    setup = Setup([(3, 1), (17, 1), (8, 1)])
    config = VllmConfig(ModelConfig("", HFConfig({}), torch.float32, 64, ""))
    spec = FullAttentionSpec(4, 2, 8, torch.float32)

    (group,) = SDPABackend.get_builder_cls()(spec, [], config, HOST).build(0, setup.common_metadata()).decodes[:1]

    assert group.as_products is as_products
    assert_attends(setup)


def test_narrow_dtypes_are_never_decoded_by_plain_products():
    setup = Setup([(3, 1)], dtype=torch.bfloat16)
    config = VllmConfig(ModelConfig("", HFConfig({}), torch.bfloat16, 64, ""))
    spec = FullAttentionSpec(4, 2, 8, torch.bfloat16)

    (group,) = SDPABackend.get_builder_cls()(spec, [], config, HOST).build(0, setup.common_metadata()).decodes

    assert not group.as_products


def test_many_decodes_are_split_into_groups_that_fit_the_workspace(monkeypatch):
    spec = FullAttentionSpec(4, 2, 8, torch.float32)
    monkeypatch.setattr(sdpa_metadata, "_GROUP_BYTES", 6 * spec.page_size_bytes)
    setup = Setup([(40, 1), (3, 1), (5, 1), (40, 1), (2, 1), (3, 1)])
    config = VllmConfig(ModelConfig("", HFConfig({}), torch.float32, 64, ""))

    groups = SDPABackend.get_builder_cls()(spec, [], config, HOST).build(0, setup.common_metadata()).decodes

    assert [group.keys.shape[0] // spec.num_kv_heads for group in groups] == [1, 1, 3, 1]
    assert all(group.workspace.shape[0] <= 2 * 11 for group in groups)
    assert_attends(setup)


def test_without_metadata_nothing_is_stored():
    impl = SDPABackend.get_impl_cls()(2, 4, 1.0, 1)
    output = torch.full((3, 2, 4), 7.0)

    result = impl.forward(
        torch.nn.Module(), torch.ones(3, 2, 4), torch.ones(3, 1, 4), torch.ones(3, 1, 4), torch.empty(0), None, output
    )

    assert torch.equal(result, torch.full((3, 2, 4), 7.0))


def test_what_it_cannot_serve_is_said_with_reasons():
    reasons = SDPABackend.validate_configuration(
        head_size=64, dtype=torch.float64, block_size=16, attn_type=AttentionType.ENCODER
    )

    assert len(reasons) == 2
    assert "float64" in reasons[0]
    assert "encoder" in reasons[1]
