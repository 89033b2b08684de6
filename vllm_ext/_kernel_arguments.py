"""What the compiled kernels take for tensors: addresses, sizes and distances, of tensors that they can read.

The kernels know nothing of a tensor but these. What they would misread, or write beside, is refused here.
"""

from __future__ import annotations

import torch

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As in kernels.h."""


def element_of(first: torch.Tensor, *others: torch.Tensor, indices: torch.Tensor | None = None) -> int:
    """What the tensors consist of, as the kernels are told.

    Raises:
        TypeError: they are of another dtype, of several, or not in host memory; the indices are none.
    """
    for tensor in (first, *others):
        if tensor.dtype not in ELEMENTS or tensor.dtype is not first.dtype or not tensor.is_cpu:
            raise TypeError(
                "the kernels take float32, bfloat16 or float16, one of them in a call, in host memory, "
                f"given {tensor.dtype} on {tensor.device}, and {first.dtype}"
            )
    if indices is not None:
        check_indices(indices)
    return ELEMENTS[first.dtype]


def check_indices(indices: torch.Tensor, dtype: torch.dtype = torch.int64) -> None:
    """Raises TypeError unless this is a list of indices, contiguous, of ``dtype``."""
    if indices.dtype is not dtype or not indices.is_cpu:
        name = str(dtype).removeprefix("torch.")
        raise TypeError(f"the kernels take indices as {name} in host memory, given {indices.dtype} on {indices.device}")
    if indices.dim() != 1 or not indices.is_contiguous():
        raise refusal("the kernels take indices in one dimension, contiguous", indices)


def storing_arguments(
    key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> tuple[int, ...]:
    """What keys and values that are put into a cache are for the kernel.

    Raises:
        TypeError: the kernel would misread one of them.
    """
    element = element_of(key, value, kv_cache, indices=slot_mapping)
    blocks, kv_heads, block_size, content = kv_cache.shape
    size, tokens = content // 2, slot_mapping.numel()
    shape, strides, value_strides = (tokens, kv_heads, size), key.stride(), value.stride()
    for heads, of_heads in ((key, strides), (value, value_strides)):
        if heads.shape != shape or not _are_dense(of_heads, kv_heads, size):
            raise refusal(f"reshape_and_cache takes dense rows {list(shape)} for this cache", heads)
    if not kv_cache.is_contiguous():
        raise refusal("reshape_and_cache takes a contiguous cache", kv_cache)
    return (
        kv_cache.data_ptr(),
        kv_heads,
        block_size,
        size,
        element,
        key.data_ptr(),
        value.data_ptr(),
        slot_mapping.data_ptr(),
        tokens,
        strides[0],
        value_strides[0],
        blocks,
    )


def attention_arguments(
    output: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    places: torch.Tensor,
    rows: torch.Tensor,
) -> tuple[int, ...]:
    """What both kinds of attention take behind their output; ``places`` says where the query tokens of ``rows`` are.

    Raises:
        TypeError: the kernels would misread one of them.
    """
    element = element_of(output, query, kv_cache, indices=rows)
    check_indices(seq_lens, torch.int32)
    shape, strides, table_strides = query.shape, query.stride(), block_table.stride()
    _, heads, size = shape
    _, kv_heads, block_size, content = kv_cache.shape
    if block_table.dtype is not torch.int32 or (table_strides[1] != 1 and block_table.shape[1] > 1):
        raise refusal(f"attention takes a block table [reqs, blocks] as int32, given {block_table.dtype}", block_table)
    if content != 2 * size or heads % kv_heads or not _are_dense(strides, heads, size):
        raise refusal(f"attention takes dense queries [tokens, n * {kv_heads}, {content // 2}] for this cache", query)
    if output.shape != shape or not output.is_contiguous():
        raise refusal(f"attention takes an output like the query, {list(shape)}, contiguous", output)
    if not kv_cache.is_contiguous():
        raise refusal("attention takes a contiguous cache", kv_cache)
    return (
        query.data_ptr(),
        kv_cache.data_ptr(),
        kv_heads,
        block_size,
        size,
        element,
        block_table.data_ptr(),
        seq_lens.data_ptr(),
        places.data_ptr(),
        rows.data_ptr(),
        rows.numel(),
        heads // kv_heads,
        table_strides[0],
        strides[0],
        heads * size,
    )


def refusal(what: str, tensor: torch.Tensor) -> TypeError:
    """The error of a tensor that is not what a kernel takes."""
    return TypeError(f"{what}, given {list(tensor.shape)} with strides {tensor.stride()}")


def _are_dense(strides: tuple[int, ...], heads: int, size: int) -> bool:
    """Whether rows ``[heads, size]`` of a tensor with these strides are dense; the rows themselves may lie apart."""
    return strides[2] == 1 and (strides[1] == size or heads == 1)
