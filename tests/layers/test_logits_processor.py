"""The layer from hidden states to logits, against the formulas."""

from __future__ import annotations

import pytest
import torch

from vllm_ext.layers.linear_method import UnquantizedLinearMethod
from vllm_ext.layers.logits_processor import LogitsProcessor
from vllm_ext.layers.vocab_parallel_embedding import ParallelLMHead


@pytest.fixture
def head(engine):
    head = ParallelLMHead(11, 6)
    head.weight.copy_(torch.randn(11, 6))
    # It needs no loader to arrange the weight.
    head.linear_method = UnquantizedLinearMethod()
    return head


def product(head, hidden):
    return hidden.double() @ head.weight.double().T


def close(logits, expected):
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


def test_logits_are_the_heads_product(head):
    hidden = torch.randn(3, 6)

    close(LogitsProcessor(11)(head, hidden), product(head, hidden))


def test_a_bias_is_added_to_them(head):
    hidden, bias = torch.randn(3, 6), torch.randn(11)

    close(LogitsProcessor(11)(head, hidden, bias), product(head, hidden) + bias.double())


def test_rows_beyond_the_models_tokens_are_cut_off(head):
    hidden = torch.randn(3, 6)

    close(LogitsProcessor(11, 9)(head, hidden), product(head, hidden)[:, :9])


def test_the_cap_comes_before_the_scale(head):
    hidden = torch.randn(3, 6) * 10

    logits = LogitsProcessor(11, scale=0.5, soft_cap=2.0)(head, hidden)

    close(logits, torch.tanh(product(head, hidden) / 2) * 2 * 0.5)


def test_logits_that_are_given_stay_as_they_are():
    given = torch.randn(3, 11)
    before = given.clone()

    logits = LogitsProcessor(11, scale=0.5, logits_as_input=True)(None, given)

    assert torch.equal(logits, before * 0.5)
    assert torch.equal(given, before)


def test_without_a_head_it_says_what_it_takes():
    with pytest.raises(TypeError, match="build it with logits_as_input=True"):
        LogitsProcessor(11)(None, torch.randn(3, 6))
