"""The compiled kernels as ops of torch."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch.library import opcheck

from vllm_ext import _custom_ops
from vllm_ext.layers import torch_ops

pytestmark = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))
BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_SIZE = 3, 2, 4, 8


def cache() -> torch.Tensor:
    return torch.randn(BLOCKS, KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)


CASES = {
    "rms_norm": lambda: (torch.randn(3, 8), torch.randn(8), 1e-5, None),
    "rms_norm, heads": lambda: (torch.randn(3, 32)[:, 8:24].unflatten(1, (2, 8)), torch.randn(8), 1e-5, None),
    "rms_norm, residual": lambda: (torch.randn(3, 8), torch.randn(8), 1e-5, torch.randn(3, 8)),
    "silu_and_mul": lambda: (torch.randn(3, 8),),
    "rotary_embedding": lambda: (torch.tensor([1, 0]), torch.randn(2, 16), torch.randn(5, 16), 8),
    "argmax": lambda: (torch.randn(3, 50)[:, 2:],),
    "draw_tokens": lambda: (
        torch.randn(3, 50),
        torch.tensor([2, 0]),
        torch.tensor([0.5, 1.5]),
        torch.tensor([5, 0]),
        torch.tensor([1.0, 0.9]),
        torch.tensor([0.3, 0.7], dtype=torch.float64),
    ),
    "embedding": lambda: (torch.tensor([4, 0, 4]), torch.randn(5, 8)),
    "reshape_and_cache": lambda: (
        torch.randn(2, KV_HEADS, HEAD_SIZE),
        torch.randn(2, KV_HEADS, HEAD_SIZE),
        cache(),
        torch.tensor([5, 2]),
    ),
    "paged_attention_decode": lambda: (
        torch.zeros(2, 4, HEAD_SIZE),
        torch.randn(2, 4, HEAD_SIZE),
        cache(),
        torch.tensor([[0, 1], [2, 0]], dtype=torch.int32),
        torch.tensor([7, 3], dtype=torch.int32),
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
        0.3,
    ),
    "paged_attention_prefill": lambda: (
        torch.zeros(5, 4, HEAD_SIZE),
        torch.randn(5, 4, HEAD_SIZE),
        cache(),
        torch.tensor([[0, 1], [2, 0]], dtype=torch.int32),
        torch.tensor([7, 3], dtype=torch.int32),
        torch.tensor([0, 2, 5], dtype=torch.int32),
        torch.tensor([0, 1]),
        0.3,
    ),
}
if _custom_ops.linear_panel(torch.float32):
    CASES["linear"] = lambda: (torch.randn(3, 8), _custom_ops.pack_weight(torch.randn(40, 8)), torch.randn(40), 40)
    CASES["linear, no bias"] = lambda: (torch.randn(1, 8), _custom_ops.pack_weight(torch.randn(40, 8)), None, 40)


@pytest.mark.parametrize("case", CASES)
def test_torchs_own_check_passes(case):
    name = case.partition(",")[0]

    opcheck(getattr(torch.ops.vllm_ext, name), CASES[case]())


@pytest.mark.parametrize("case", CASES)
def test_the_op_does_what_the_function_does(case):
    name = case.partition(",")[0]
    given = CASES[case]()
    same = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in given]

    expected = getattr(_custom_ops, name)(*given)
    result = getattr(torch.ops.vllm_ext, name)(*same)

    torch.testing.assert_close(result, expected)
    # What is changed in place, is changed alike.
    torch.testing.assert_close(same, list(given))


def test_a_compiled_graph_holds_the_op():
    x, weight = torch.randn(3, 8), torch.randn(8)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.vllm_ext.rms_norm(x, weight, 1e-5, None) * 2

    compiled = torch.compile(norm, backend="eager", fullgraph=True)

    torch.testing.assert_close(compiled(x, weight), norm(x, weight))


def test_every_kernel_is_registered():
    kernels = {
        name
        for name, function in vars(_custom_ops).items()
        if inspect.isfunction(function) and re.search(r"\b_C\.\w+\(\s*out", inspect.getsource(function))
    }
    kernels.add("reshape_and_cache")  # which has no output

    assert {function.__name__ for function, *_ in torch_ops._OPS} == kernels
