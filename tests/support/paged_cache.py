"""A paged cache that the compiled kernels filled, and attention over it written out in float64."""

from __future__ import annotations

import random

import torch

from vllm_ext import _custom_ops

SCALE = 0.3


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
"""That the kernels compute with."""


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close_in(dtype: torch.dtype, rtol: float, atol: float) -> dict[str, float]:
    """Bounds for a result that is within ``rtol`` and ``atol`` in float32, and rounded to ``dtype`` once."""
    once = 0.0 if dtype is torch.float32 else torch.finfo(dtype).eps / 2
    return {"rtol": rtol + once, "atol": atol}


class PagedCache:
    """Requests of ``lens`` tokens in scattered blocks, stored by the kernel; what was never stored is NaN."""

    def __init__(
        self,
        lens: list[int],
        kv_heads: int,
        head_size: int,
        block_size: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.lens, self.kv_heads, self.head_size = lens, kv_heads, head_size
        self.seq_lens = torch.tensor(lens, dtype=torch.int32)
        widths = [-(-length // block_size) for length in lens]
        blocks = random.Random(seed).sample(range(sum(widths) + 2), sum(widths))
        self.table = torch.zeros(len(lens), max(widths) + 1, dtype=torch.int32)
        for row, width in enumerate(widths):
            self.table[row, :width] = torch.tensor([blocks.pop() for _ in range(width)])
        self.cache = torch.full((sum(widths) + 2, kv_heads, block_size, 2 * head_size), torch.nan, dtype=dtype)
        self.keys = [
            randn(length, kv_heads, head_size, seed=seed + row, dtype=dtype) for row, length in enumerate(lens)
        ]
        self.values = [
            randn(length, kv_heads, head_size, seed=~(seed + row), dtype=dtype) for row, length in enumerate(lens)
        ]
        for row, length in enumerate(lens):
            places = torch.arange(length)
            slots = self.table[row, places // block_size].long() * block_size + places % block_size
            _custom_ops.reshape_and_cache(self.keys[row], self.values[row], self.cache, slots)

    def decode(self, query: torch.Tensor, **options: float) -> torch.Tensor:
        """Request ``i``'s token stands at ``len(lens) - 1 - i`` of the batch."""
        output = torch.full_like(query, torch.nan, memory_format=torch.contiguous_format)
        rows = torch.arange(len(self.lens))
        _custom_ops.paged_attention_decode(
            output, query, self.cache, self.table, self.seq_lens, rows.flip(0), rows, SCALE, **options
        )
        return output.flip(0)

    def expected_decode(self, query: torch.Tensor, window: int = 0, cap: float = 0.0) -> torch.Tensor:
        """What :meth:`decode` should give."""
        return torch.cat([self.expected(row, q[None], window, cap) for row, q in enumerate(query.flip(0))])

    def prefill(self, query: torch.Tensor, counts: list[int], rows: torch.Tensor, **options: float) -> torch.Tensor:
        """The last ``counts[i]`` tokens of request ``i``, of which ``rows`` are computed; the rest is NaN."""
        output = torch.full_like(query, torch.nan, memory_format=torch.contiguous_format)
        starts = torch.tensor([0, *counts]).cumsum(0).int()
        _custom_ops.paged_attention_prefill(
            output, query, self.cache, self.table, self.seq_lens, starts, rows, SCALE, **options
        )
        return output

    def expected(self, row: int, query: torch.Tensor, window: int = 0, cap: float = 0.0) -> torch.Tensor:
        """Attention of a request's last tokens, whose queries are ``[tokens, heads, head_size]``."""
        keys, values = (
            x[row].double().repeat_interleave(query.shape[1] // self.kv_heads, dim=1) for x in (self.keys, self.values)
        )
        scores = torch.einsum("qhd,thd->hqt", query.double(), keys) * SCALE
        scores = cap * torch.tanh(scores / cap) if cap else scores
        tokens, length = query.shape[0], self.lens[row]
        back = torch.arange(length - tokens, length).unsqueeze(1) - torch.arange(length)
        hidden = (back < 0) | (back >= window) if window else back < 0
        return torch.einsum("hqt,thd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)
