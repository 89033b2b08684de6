"""One step of one attention layer over a cache of scattered blocks: what a backend gives, and what it should give."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch

from vllm_ext.attention.backends.reference import ReferenceBackend
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.contracts.attention import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)
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
    slopes: list[float] | None = None
    sinks: list[float] | None = None
    unseen: float | None = None
    """What others have left in blocks that lie wholly before all windows of a request; ``None``: its own tokens."""
    backend: type[AttentionBackend] = SDPABackend
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
        self.block_table = torch.full((len(lens), max(widths)), unused.pop(), dtype=torch.int32)
        for row, width in enumerate(widths):
            self.block_table[row, :width] = torch.tensor([unused.pop() for _ in range(width)])

    def slots(self, request: int, first: int, end: int) -> list[int]:
        row = self.block_table[request].tolist()
        return [row[i // self.block_size] * self.block_size + i % self.block_size for i in range(first, end)]

    def run(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The backend's output by request, and the cache after it."""
        cache = torch.zeros(self.num_blocks, self.num_kv_heads, self.block_size, 2 * self.head_size, dtype=self.dtype)
        for request, (before, _) in enumerate(self.requests):
            slots = torch.tensor(self.slots(request, 0, before), dtype=torch.int64)
            cache[slots // self.block_size, :, slots % self.block_size] = self.content(request)[:before]
            if self.unseen is not None and self.window is not None:
                num_unseen = max(0, before + 1 - self.window) // self.block_size
                cache[self.block_table[request, :num_unseen]] = self.unseen
        new = [slice(before, before + count) for before, count in self.requests]
        query = torch.cat(self.queries)
        key = torch.cat([keys[rows] for keys, rows in zip(self.keys, new, strict=True)])
        value = torch.cat([values[rows] for values, rows in zip(self.values, new, strict=True)])
        output = torch.full_like(query, torch.nan)
        layer, common, impl = torch.nn.Module(), self.common_metadata(), self.impl()
        metadata = self.builder().build(0, common)
        if not self.backend.forward_includes_kv_cache_update:
            impl.do_kv_cache_update(layer, key, value, cache, common.slot_mapping)
        result = impl.forward(layer, query, key, value, cache, metadata, output)
        return list(result.split([count for _, count in self.requests])), cache

    def builder(self) -> AttentionMetadataBuilder:
        """Of a layer that has these terms."""
        spec = FullAttentionSpec(self.block_size, self.num_kv_heads, self.head_size, self.dtype, self.window)
        config = VllmConfig(ModelConfig("", HFConfig({}), self.dtype, 64, ""))
        config.compilation_config.static_forward_context["layer"] = SimpleNamespace(
            logits_soft_cap=self.soft_cap, alibi_slopes=self.slopes, has_sink=self.sinks is not None
        )
        return self.backend.get_builder_cls()(spec, ["layer"], config, HOST)

    def impl(self) -> AttentionImpl:
        """Of the same layer, built as the layer does."""
        arguments = (self.num_heads, self.head_size, self.scale, self.num_kv_heads, self.slopes, self.window, "auto")
        extra = {} if self.sinks is None else {"sinks": torch.tensor(self.sinks, dtype=self.dtype)}
        return self.backend.get_impl_cls()(*arguments, self.soft_cap, AttentionType.DECODER, None, **extra)

    def content(self, request: int) -> torch.Tensor:
        """Of the cache, ``[tokens, num_kv_heads, 2 * head_size]``: key and value of each token of the request."""
        return torch.cat((self.keys[request], self.values[request]), dim=-1)

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
        """softmax(QK^T)V in float64, request by request, head by head, token by token."""
        return [
            torch.stack([self.attended(request, token) for token in range(count)])
            for request, (_, count) in enumerate(self.requests)
        ]

    def attended(self, request: int, token: int) -> torch.Tensor:
        """``[num_heads, head_size]`` of one new token."""
        seen = self.requests[request][0] + token + 1
        first = 0 if self.window is None else max(0, seen - self.window)
        keys, values = (x[request][first:seen].double() for x in (self.keys, self.values))
        rows = []
        for head, query in enumerate(self.queries[request][token].double()):
            kv_head = head * self.num_kv_heads // self.num_heads
            scores = keys[:, kv_head] @ query * self.scale
            if self.soft_cap is not None:
                scores = self.soft_cap * (scores / self.soft_cap).tanh()
            if self.slopes is not None:
                scores = scores + self.slopes[head] * (torch.arange(first, seen) - (seen - 1))
            total = scores.exp().sum()
            if self.sinks is not None:
                total = total + torch.tensor(self.sinks[head], dtype=self.dtype).double().exp()
            rows.append(scores.exp() / total @ values[:, kv_head])
        return torch.stack(rows)


def assert_attends(setup: Setup) -> None:
    outputs, cache = setup.run()

    for output, expected in zip(outputs, setup.expected(), strict=True):
        torch.testing.assert_close(output.double(), expected, atol=TOLERANCE[setup.dtype], rtol=0)
    for request, (before, count) in enumerate(setup.requests):
        for position, slot in enumerate(setup.slots(request, 0, before + count)):
            stored = cache[slot // setup.block_size, :, slot % setup.block_size]
            assert torch.equal(stored, setup.content(request)[position])


def assert_equals_reference(setup: Setup) -> None:
    """The setup's backend gives the output and the cache that the reference backend gives."""
    outputs, cache = setup.run()
    expected, expected_cache = replace(setup, backend=ReferenceBackend).run()

    assert torch.equal(cache, expected_cache)
    torch.testing.assert_close(torch.cat(outputs), torch.cat(expected), atol=TOLERANCE[setup.dtype], rtol=0)
