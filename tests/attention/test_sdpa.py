"""The SDPA backend against attention written out in float64, over a cache of scattered blocks."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ext.attention.backends import sdpa_metadata
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.contracts.attention import AttentionBackend, AttentionType, CommonAttentionMetadata
from vllm_ext.contracts.kv_cache import FullAttentionSpec
from vllm_ext.contracts.vllm_config import HFConfig, ModelConfig, VllmConfig

HOST = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class Setup:
    """One attention layer and its cache, with requests of ``(tokens in the cache before, new tokens)``."""

    requests: list[tuple[int, int]]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 8
    block_size: int = 4
    dtype: torch.dtype = torch.float32
    seed: int = 0
    window: int | None = None
    soft_cap: float | None = None
    keys: list[torch.Tensor] = field(init=False)
    values: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.scale = 1.3 / self.head_size
        self.generator = torch.Generator().manual_seed(self.seed)
        lens = [before + new for before, new in self.requests]
        self.keys = [self.randn(length, self.num_kv_heads, self.head_size) for length in lens]
        self.values = [self.randn(length, self.num_kv_heads, self.head_size) for length in lens]
        self.queries = [self.randn(new, self.num_heads, self.head_size) for _, new in self.requests]
        self.place_blocks(lens)

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def place_blocks(self, lens: list[int]) -> None:
        widths = [-(-length // self.block_size) for length in lens]
        self.num_blocks = sum(widths) + 3
        unused = random.Random(self.seed).sample(range(self.num_blocks), self.num_blocks)
        self.block_table = torch.zeros(len(lens), max(widths), dtype=torch.int32)
        for row, width in enumerate(widths):
            self.block_table[row, :width] = torch.tensor([unused.pop() for _ in range(width)])

    def slots(self, request: int, first: int, end: int) -> list[int]:
        row = self.block_table[request].tolist()
        return [row[i // self.block_size] * self.block_size + i % self.block_size for i in range(first, end)]

    def run(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The backend's output by request, and the cache after it."""
        spec = FullAttentionSpec(self.block_size, self.num_kv_heads, self.head_size, self.dtype, self.window)
        config = VllmConfig(ModelConfig("", HFConfig({}), self.dtype, 64, ""))
        config.compilation_config.static_forward_context["layer"] = SimpleNamespace(logits_soft_cap=self.soft_cap)
        builder = SDPABackend.get_builder_cls()(spec, ["layer"], config, HOST)
        impl = SDPABackend.get_impl_cls()(
            self.num_heads,
            self.head_size,
            self.scale,
            self.num_kv_heads,
            sliding_window=self.window,
            logits_soft_cap=self.soft_cap,
        )
        cache = torch.zeros(self.num_blocks, self.num_kv_heads, self.block_size, 2 * self.head_size, dtype=self.dtype)
        for request, (before, _) in enumerate(self.requests):
            for position, slot in enumerate(self.slots(request, 0, before)):
                cache[slot // self.block_size, :, slot % self.block_size] = self.content(request, position)
        new = [slice(before, before + count) for before, count in self.requests]
        query = torch.cat(self.queries)
        key = torch.cat([keys[rows] for keys, rows in zip(self.keys, new, strict=True)])
        value = torch.cat([values[rows] for values, rows in zip(self.values, new, strict=True)])
        output = torch.full_like(query, torch.nan)
        metadata = builder.build(0, self.common_metadata())
        result = impl.forward(torch.nn.Module(), query, key, value, cache, metadata, output)
        return list(result.split([count for _, count in self.requests])), cache

    def content(self, request: int, position: int) -> torch.Tensor:
        return torch.cat((self.keys[request][position], self.values[request][position]), dim=-1)

    def common_metadata(self) -> CommonAttentionMetadata:
        counts = [count for _, count in self.requests]
        starts = torch.tensor([0, *counts]).cumsum(0).int()
        lens = torch.tensor([before + count for before, count in self.requests]).int()
        slots = [
            slot for r, (before, count) in enumerate(self.requests) for slot in self.slots(r, before, before + count)
        ]
        return CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=lens,
            seq_lens_cpu=lens,
            num_reqs=len(counts),
            num_actual_tokens=sum(counts),
            max_query_len=max(counts),
            max_seq_len=int(lens.max()),
            block_table_tensor=self.block_table,
            slot_mapping=torch.tensor(slots),
        )

    def expected(self) -> list[torch.Tensor]:
        """softmax(QK^T)V, request by request, head by head, token by token."""
        outputs = []
        for (before, count), queries, keys, values in zip(
            self.requests, self.queries, self.keys, self.values, strict=True
        ):
            output = torch.empty(queries.shape, dtype=torch.float64)
            for token in range(count):
                seen = before + token + 1
                first = 0 if self.window is None else max(0, seen - self.window)
                for head in range(self.num_heads):
                    kv_head = head * self.num_kv_heads // self.num_heads
                    scores = keys[first:seen, kv_head].double() @ queries[token, head].double() * self.scale
                    if self.soft_cap is not None:
                        scores = self.soft_cap * (scores / self.soft_cap).tanh()
                    output[token, head] = scores.softmax(0) @ values[first:seen, kv_head].double()
            outputs.append(output)
        return outputs


def assert_attends(setup: Setup) -> None:
    outputs, cache = setup.run()

    for output, expected in zip(outputs, setup.expected(), strict=True):
        torch.testing.assert_close(output.double(), expected, atol=TOLERANCE[setup.dtype], rtol=0)
    for request, (before, count) in enumerate(setup.requests):
        for position, slot in enumerate(setup.slots(request, 0, before + count)):
            stored = cache[slot // setup.block_size, :, slot % setup.block_size]
            assert torch.equal(stored, setup.content(request, position))


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


@settings(max_examples=60, deadline=None)
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


def test_a_backend_without_windows_and_caps_says_so():
    class Plain(SDPABackend):
        supports_sliding_window = AttentionBackend.supports_sliding_window
        supports_logits_soft_cap = AttentionBackend.supports_logits_soft_cap

    layer = {"head_size": 64, "dtype": torch.float32, "block_size": 16, "attn_type": AttentionType.DECODER}

    assert Plain.validate_configuration(**layer) == []
    assert Plain.validate_configuration(**layer, has_sliding_window=True, has_logits_soft_cap=True) == [
        "sliding windows are not supported",
        "a soft cap on the logits is not supported",
    ]
    assert SDPABackend.validate_configuration(**layer, has_sliding_window=True, has_logits_soft_cap=True) == []
