"""The compiled kernels as functions on tensors: float32, bfloat16 or float16, on processors.

They compute in float32. All tensors of a call that hold numbers are of one dtype, that of what is returned.

They are there where the package was installed with a C compiler, and where torch's own OpenMP serves them too: a second
one would have threads of its own, and the two would take the processors from each other.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

# Before the kernels, so that they find its OpenMP loaded.
import torch

from vllm_ext import huge_pages
from vllm_ext._kernel_arguments import (
    ELEMENTS,
    attention_arguments,
    check_indices,
    element_of,
    refusal,
    storing_arguments,
)

try:
    _C: Any = importlib.import_module("vllm_ext._C")
except ImportError:
    _C = None

_OPENMP = re.compile(r"/(lib[gi]?omp\d?[.-]\S*)$", re.MULTILINE)


@cache
def why_missing() -> str | None:
    """Why there are no kernels here, in words; ``None`` where there are."""
    if _C is None:
        return "the package was installed without a C compiler"
    if len(found := _loaded_openmp()) > 1:
        return f"two OpenMP libraries are loaded: {', '.join(sorted(found))}"
    return None


def are_usable(dtype: torch.dtype) -> bool:
    """Whether the kernels can compute in ``dtype``."""
    return dtype in ELEMENTS and why_missing() is None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, residual: torch.Tensor | None) -> torch.Tensor:
    """``x / sqrt(mean(x**2) + epsilon) * weight`` over the last dimension, as a new tensor.

    Args:
        x: ``[rows, size]`` or ``[rows, heads, size]``, dense but for the distance of rows.
        weight: ``[size]``.
        residual: like ``x``, and contiguous; ``x`` is added to it in place, and the sum normalised.
    """
    element = element_of(x, weight, x if residual is None else residual)
    shape, strides = x.shape, x.stride()
    size, count = shape[-1], x.numel()
    if not 2 <= len(shape) <= 3 or strides[1:] != (size, 1)[3 - len(shape) :]:
        raise refusal("rms_norm takes [rows, size] or [rows, heads, size] with dense rows", x)
    if weight.numel() != size or not weight.is_contiguous():
        raise refusal(f"rms_norm takes a weight [{size}], contiguous", weight)
    if residual is not None and (
        residual.numel() != count or residual.shape[-1] != size or not residual.is_contiguous()
    ):
        raise refusal(f"rms_norm takes a residual like x, {list(shape)}, contiguous", residual)
    out = x.new_empty(shape)
    address = 0 if residual is None else residual.data_ptr()
    _C.rms_norm(
        out.data_ptr(),
        x.data_ptr(),
        address,
        weight.data_ptr(),
        count // size,
        size,
        shape[1] if len(shape) == 3 else 1,
        strides[0],
        epsilon,
        element,
        torch.get_num_threads(),
    )
    return out


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of ``[..., 2 * size]``, contiguous, gate first."""
    element = element_of(x)
    *rows, width = x.shape
    if width % 2 or not x.is_contiguous():
        raise refusal("silu_and_mul takes [..., 2 * size], contiguous", x)
    size = width // 2
    out = x.new_empty((*rows, size))
    _C.silu_and_mul(out.data_ptr(), x.data_ptr(), out.numel() // size, size, element, torch.get_num_threads())
    return out


def rotary_embedding(
    positions: torch.Tensor, x: torch.Tensor, cos_sin_cache: torch.Tensor, head_size: int
) -> torch.Tensor:
    """Rotated heads, as a new tensor ``[tokens, heads * head_size]``.

    Args:
        positions: int64 ``[tokens]``.
        x: ``[tokens, heads * head_size]``, dense in the last dimension.
        cos_sin_cache: ``[positions, 2 * head_size]``, contiguous: cosines of both halves, then the signed sines.

    Raises:
        IndexError: a position is outside of the table.
    """
    element = element_of(x, cos_sin_cache, indices=positions)
    (tokens, width), (distance, apart) = x.shape, x.stride()
    num_positions, table_width = cos_sin_cache.shape
    if apart != 1 or width % head_size or positions.numel() != tokens:
        raise refusal(f"rotary_embedding takes dense rows [{positions.numel()}, heads * {head_size}]", x)
    if table_width != 2 * head_size or not cos_sin_cache.is_contiguous():
        raise refusal(f"rotary_embedding takes a table [positions, {2 * head_size}], contiguous", cos_sin_cache)
    out = x.new_empty((tokens, width))
    _C.rotary_embedding(
        out.data_ptr(),
        x.data_ptr(),
        positions.data_ptr(),
        cos_sin_cache.data_ptr(),
        tokens,
        width // head_size,
        head_size,
        distance,
        num_positions,
        element,
        torch.get_num_threads(),
    )
    return out


def embedding(input_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows of a table, as a new tensor ``[tokens, size]``.

    Args:
        input_ids: int64 ``[tokens]``, contiguous.
        table: ``[rows, size]``, contiguous.

    Raises:
        IndexError: an id is outside of the table.
    """
    element = element_of(table, indices=input_ids)
    if not table.is_contiguous():
        raise refusal("embedding takes a table [rows, size], contiguous", table)
    rows, size = table.shape
    count = input_ids.numel()
    out = table.new_empty((count, size))
    _C.embedding(
        out.data_ptr(),
        input_ids.data_ptr(),
        table.data_ptr(),
        count,
        rows,
        size,
        element,
        torch.get_num_threads(),
    )
    return out


def reshape_and_cache(
    key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Put keys and values into a layer's cache.

    Args:
        key, value: ``[tokens, kv_heads, head_size]``, dense in the last two dimensions.
        kv_cache: ``[blocks, kv_heads, block_size, 2 * head_size]``, contiguous; written in place.
        slot_mapping: int64 ``[tokens]``, ``block * block_size + offset``.

    Raises:
        IndexError: a slot is outside of the cache; what has one inside of it may have been written.
    """
    _C.reshape_and_cache(*storing_arguments(key, value, kv_cache, slot_mapping), torch.get_num_threads())


def paged_attention_decode(
    output: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    tokens: torch.Tensor,
    rows: torch.Tensor,
    scale: float,
    sliding_window: int = 0,
    logits_soft_cap: float = 0.0,
) -> None:
    """Attention of one query token each of several requests over their cached tokens, into ``output``.

    Args:
        output: ``[tokens, heads, head_size]``, contiguous; only the rows in ``tokens`` are written.
        query: like ``output``, dense in the last two dimensions.
        kv_cache: ``[blocks, kv_heads, block_size, 2 * head_size]``, contiguous.
        block_table: int32 ``[reqs, blocks]``, dense in the last dimension. seq_lens: int32 ``[reqs]``, at least 1.
        tokens, rows: int64, contiguous and alike: query token ``tokens[i]`` belongs to request ``rows[i]``.
        sliding_window: number of tokens that are seen, the query's own among them; 0 for all.
        logits_soft_cap: ``c`` in ``c * tanh(score / c)``; 0 for none.
    """
    check_indices(tokens)
    step = attention_arguments(output, query, kv_cache, block_table, seq_lens, tokens, rows)
    _C.paged_attention_decode(output.data_ptr(), *step, sliding_window, scale, logits_soft_cap, torch.get_num_threads())


def paged_attention_prefill(
    output: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    rows: torch.Tensor,
    scale: float,
    sliding_window: int = 0,
    logits_soft_cap: float = 0.0,
) -> None:
    """Attention of the last tokens of several requests, each over those up to itself in the cache, into ``output``.

    Args:
        output, query, kv_cache, block_table, seq_lens, scale, sliding_window, logits_soft_cap: as in
            :func:`paged_attention_decode`; only the rows of these requests are written.
        query_start_loc: int32 ``[reqs + 1]``, contiguous: request ``i`` owns query tokens ``[loc[i], loc[i + 1])``.
        rows: int64, contiguous: the requests to compute; with the longest first, threads finish together.
    """
    check_indices(query_start_loc, torch.int32)
    step = attention_arguments(output, query, kv_cache, block_table, seq_lens, query_start_loc, rows)
    threads = torch.get_num_threads()
    _C.paged_attention_prefill(output.data_ptr(), *step, sliding_window, scale, logits_soft_cap, threads)


@cache
def linear_panel(dtype: torch.dtype) -> int:
    """Rows of a weight in one panel of :func:`pack_weight`; 0 where :func:`linear` cannot run on this machine."""
    return int(_C.linear_panel(ELEMENTS[dtype])) if are_usable(dtype) else 0


@cache
def _converts(dtype: torch.dtype) -> bool:
    """Whether :func:`linear` needs room for its input in float32."""
    return bool(_C.linear_converts(ELEMENTS[dtype]))


def can_multiply(weight: torch.Tensor) -> bool:
    """Whether :func:`linear` takes this weight ``[out, in]`` here. It takes four bytes of a row at once."""
    return linear_panel(weight.dtype) > 0 and weight.shape[1] * weight.itemsize % 4 == 0


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight ``[out, in]`` as :func:`linear` reads it, filled up with zeros: ``[panels, in, panel]``, or with
    bfloat16 ``[panels, in / 2, panel, 2]``.
    """
    panel = linear_panel(weight.dtype)
    out_features, in_features = weight.shape
    together = 2 if weight.dtype is torch.bfloat16 else 1
    width = in_features // together
    packed = huge_pages.zeros((-(-out_features // panel), width, panel, together), weight.dtype)
    parts = weight.view(out_features, width, together)
    whole = out_features // panel
    packed[:whole] = parts[: whole * panel].view(whole, panel, width, together).transpose(1, 2)
    if rest := out_features % panel:
        packed[whole, :, :rest] = parts[whole * panel :].transpose(0, 1)
    return packed


def linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, out_features: int) -> torch.Tensor:
    """``x @ weight.T + bias``, as a new tensor ``[rows, out_features]``.

    Args:
        x: ``[rows, in]``, dense in the last dimension; rows lie a multiple of four bytes apart.
        packed: the weight, from :func:`pack_weight`.
        bias: ``[out_features]``, contiguous, or ``None``.
    """
    element = element_of(x, packed, packed if bias is None else bias)
    (rows, in_features), (distance, apart) = x.shape, x.stride()
    panels, width, panel, together = packed.shape
    expected = width * together
    if apart != 1 or in_features != expected or distance * x.itemsize % 4:
        raise refusal(f"linear takes dense [rows, {expected}]", x)
    if out_features > panels * panel or not packed.is_contiguous():
        raise refusal(f"linear takes a packed weight of {out_features} rows or more, contiguous", packed)
    if bias is not None and (bias.numel() != out_features or not bias.is_contiguous()):
        raise refusal(f"linear takes a bias [{out_features}], contiguous", bias)
    out = x.new_empty((rows, out_features))
    converted = x.new_empty((rows, in_features), dtype=torch.float32) if _converts(x.dtype) else None
    inputs = [0 if tensor is None else tensor.data_ptr() for tensor in (x, packed, bias, converted)]
    sizes = (rows, out_features, in_features, distance)
    _C.linear(out.data_ptr(), *inputs, *sizes, element, torch.get_num_threads())
    return out


def argmax(x: torch.Tensor) -> torch.Tensor:
    """The first place of each row's largest number, as a new tensor: int64 ``[rows]``. NaN is larger than all.

    Args:
        x: ``[rows, size]``, not empty, dense in the last dimension.
    """
    element = element_of(x)
    rows, size = x.shape
    if not size or x.stride(1) != 1:
        raise refusal("argmax takes dense rows of some numbers", x)
    out = torch.empty(rows, dtype=torch.int64, device=x.device)
    _C.argmax(out.data_ptr(), x.data_ptr(), rows, size, x.stride(0), element, torch.get_num_threads())
    return out


def draw_tokens(
    logits: torch.Tensor,
    rows: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """A token for each draw, as a new tensor: int64 ``[draws]``. What is drawn, and where, is said by
    :func:`vllm_ext.worker.sampling.ops.draw_tokens`, which has the same in torch.

    Args:
        logits: float32 ``[rows, vocabulary]``, dense in the last dimension; only read.
        rows: int64 ``[draws]``: the rows that are drawn from. This and what follows is contiguous.
        temperature, top_p: float32 ``[draws]``.
        top_k: int64 ``[draws]``.
        uniform: float64 ``[draws]``.
    """
    element_of(logits, temperature, top_p, indices=rows)
    check_indices(top_k)
    dtypes = (logits.dtype, uniform.dtype)
    if dtypes != (torch.float32, torch.float64) or logits.dim() != 2 or logits.stride(1) != 1 or not logits.shape[1]:
        raise TypeError(
            "draw_tokens takes logits [rows, vocabulary] as float32, dense in the last dimension, and random numbers "
            f"as float64, given {logits.dtype} {list(logits.shape)} with strides {logits.stride()}, and {uniform.dtype}"
        )
    for tensor in (temperature, top_k, top_p, uniform):
        if tensor.shape != rows.shape or not tensor.is_contiguous():
            raise refusal(f"draw_tokens takes one number for each of {rows.numel()} draws, contiguous", tensor)
    out = torch.empty_like(rows)
    # In double: see scaled() in sampling.c.
    scales = temperature.double().reciprocal_()
    _C.draw_tokens(
        out.data_ptr(),
        logits.data_ptr(),
        rows.data_ptr(),
        scales.data_ptr(),
        top_k.data_ptr(),
        top_p.data_ptr(),
        uniform.data_ptr(),
        rows.shape[0],
        logits.shape[1],
        logits.stride(0),
        torch.get_num_threads(),
    )
    return out


def _loaded_openmp() -> set[str]:
    """OpenMP libraries of this process; empty on systems that do not list them in /proc."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return set()
    return set(_OPENMP.findall(maps))
