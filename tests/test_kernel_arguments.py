"""What the compiled kernels would misread, or write beside, is refused."""

from __future__ import annotations

import pytest
import torch
from support.paged_cache import randn

from vllm_ext import _custom_ops

pytestmark = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))


@pytest.mark.parametrize("position", [-1, 3, 2**40])
def test_a_position_outside_of_the_table_is_an_error(position):
    """As it is in torch, whose part this is on other devices."""
    with pytest.raises(IndexError, match="rotary_embedding: an index is outside of the table"):
        _custom_ops.rotary_embedding(torch.tensor([0, position, 2]), randn(3, 16), randn(3, 16), 8)


@pytest.mark.parametrize("slot", [-1, 8, 2**40])
def test_a_slot_outside_of_the_cache_is_an_error_and_nothing_is_written_beside_it(slot):
    whole = torch.zeros(4, 2, 4, 16)
    cache = whole[1:3]

    with pytest.raises(IndexError, match="reshape_and_cache: an index is outside of the table"):
        _custom_ops.reshape_and_cache(torch.ones(1, 2, 8), torch.ones(1, 2, 8), cache, torch.tensor([slot]))

    assert not whole.any()
