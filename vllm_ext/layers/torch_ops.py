"""The compiled kernels as ops of torch, ``torch.ops.vllm_ext.rms_norm`` and so on, for compiled graphs.

Eager code calls the functions of :mod:`vllm_ext._custom_ops` themselves, which spares torch's dispatcher. Importing
this module registers the ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_ext import _custom_ops
from vllm_ext.contracts.torch_op import direct_register_custom_op


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, residual: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(x.shape)


def _silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _rotary_embedding(
    positions: torch.Tensor, x: torch.Tensor, cos_sin_cache: torch.Tensor, head_size: int
) -> torch.Tensor:
    return x.new_empty(x.shape)


def _embedding(input_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return table.new_empty((input_ids.shape[0], table.shape[1]))


def _linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, out_features: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], out_features))


def _argmax(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


def _draw_tokens(logits: torch.Tensor, rows: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(rows)


def _nothing(*args: object) -> None:
    """Of the ops that write into what they are given."""


_OPS: tuple[tuple[Callable[..., Any], list[str], Callable[..., Any]], ...] = (
    (_custom_ops.rms_norm, ["residual"], _rms_norm),
    (_custom_ops.silu_and_mul, [], _silu_and_mul),
    (_custom_ops.rotary_embedding, [], _rotary_embedding),
    (_custom_ops.linear, [], _linear),
    (_custom_ops.embedding, [], _embedding),
    (_custom_ops.argmax, [], _argmax),
    (_custom_ops.draw_tokens, [], _draw_tokens),
    (_custom_ops.reshape_and_cache, ["kv_cache"], _nothing),
    (_custom_ops.paged_attention_decode, ["output"], _nothing),
    (_custom_ops.paged_attention_prefill, ["output"], _nothing),
)
for _function, _mutates, _fake in _OPS:
    direct_register_custom_op(_function.__name__, _function, _mutates, _fake, dispatch_key="CPU")
