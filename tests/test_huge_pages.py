"""Zeroed memory of the host on huge pages."""

from __future__ import annotations

import gc
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vllm_ext import huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE = 40 << 20
"""Bytes: more than a shared piece."""


def of_this_process(field: str) -> int:
    """Bytes in memory. What earlier tests have left in cycles goes first, or it would at any time."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


@pytest.mark.parametrize("shape", [(3, 5), (1,), (LARGE // 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_tensor_has_its_shape_and_dtype_and_is_zero(shape, dtype):
    tensor = huge_pages.zeros(shape, dtype)

    assert tensor.shape == shape
    assert tensor.dtype is dtype
    assert tensor.is_contiguous()
    assert not tensor.any()


def test_a_tensor_begins_where_kernels_can_read_vectors():
    addresses = [huge_pages.zeros((n,), torch.int8).data_ptr() for n in (1, 63, 4096, 4097, LARGE + 1)]

    assert not any(address % 64 for address in addresses)


def test_tensors_of_many_threads_do_not_overlap():
    def filled(number: int) -> torch.Tensor:
        return huge_pages.zeros((5000 + number,), torch.int32).fill_(number)

    with ThreadPoolExecutor(8) as threads:
        tensors = list(threads.map(filled, range(3000)))

    assert all(bool((tensor == number).all()) for number, tensor in enumerate(tensors))


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="a system without huge pages")
def test_what_is_written_lies_on_huge_pages():
    before = of_this_process("AnonHugePages")

    tensor = huge_pages.zeros((LARGE,), torch.int8).fill_(1)

    # All but the ends, which may not fill one.
    assert of_this_process("AnonHugePages") - before >= tensor.nbytes - (4 << 20)


def test_what_is_not_written_takes_no_memory():
    before = of_this_process("Rss")

    tensor = huge_pages.zeros((1 << 30,), torch.int8)

    assert of_this_process("Rss") - before < tensor.nbytes // 100


def test_memory_goes_back_with_the_last_tensor_in_it():
    before = of_this_process("Rss")
    tensors = [huge_pages.zeros((8 << 20,), torch.int8).fill_(1) for _ in range(16)]
    assert of_this_process("Rss") - before > 120 << 20

    tensors.clear()

    # The piece that is shared next stays.
    assert of_this_process("Rss") - before < 40 << 20


def test_a_system_that_knows_no_huge_pages_gives_usual_ones(monkeypatch):
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)  # Which it refuses.
    with pytest.raises(OSError, match="Invalid argument"):
        mmap.mmap(-1, 4096).madvise(mmap.MADV_HUGEPAGE)

    assert not huge_pages.zeros((LARGE,), torch.int8).any()
