"""The reference backend against attention written out in float64, and against torch's own on dense tensors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_step import TOLERANCE, Setup, assert_attends

from vllm_ext.attention.backends.reference import ReferenceBackend

EVERY_TERM = {"window": 7, "soft_cap": 0.5, "slopes": [0.5, 0.25, 0.1, 0.0], "sinks": [0.3, -1.0, 2.0, 0.0]}


def reference(requests, *args, **terms) -> Setup:
    return Setup(requests, *args, backend=ReferenceBackend, **terms)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("term", [None, *EVERY_TERM])
def test_each_term_alone(term, heads, dtype):
    terms = {} if term is None else {term: EVERY_TERM[term]}

    assert_attends(reference([(0, 5), (11, 1), (4, 6), (2, 1), (0, 1)], *heads, dtype=dtype, **terms))


@settings(max_examples=40)
@given(
    requests=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=6),
    block_size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    terms=st.sets(st.sampled_from(sorted(EVERY_TERM))),
)
def test_terms_together_over_random_lengths_and_block_tables(requests, block_size, seed, terms):
    chosen = {term: EVERY_TERM[term] for term in terms}

    assert_attends(reference(requests, block_size=block_size, seed=seed, **chosen))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
def test_whole_prompts_are_what_torch_computes_on_dense_tensors(heads):
    setup = reference([(0, 9), (0, 4)], *heads)

    outputs, _ = setup.run()

    for output, *dense in zip(outputs, setup.queries, setup.keys, setup.values, strict=True):
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in dense)
        expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=setup.scale, enable_gqa=True)
        torch.testing.assert_close(output, expected[0].transpose(0, 1), atol=1e-5, rtol=0)


def test_narrow_dtypes_are_computed_in_float32():
    """Its error is that of one rounding of the result, whatever the length."""
    setup = reference([(300, 1)], dtype=torch.bfloat16)

    (output,), _ = setup.run()

    assert torch.equal(output[0], setup.attended(0, 0).bfloat16())


def test_float64_stays_float64():
    setup = reference([(30, 2)], dtype=torch.float64)

    (output,), _ = setup.run()

    torch.testing.assert_close(output, setup.expected()[0], atol=1e-12, rtol=0)


def test_in_a_profiling_run_the_output_is_left_as_it_is():
    output = torch.full((3, 2, 4), 7.0)
    query, key = torch.ones(3, 2, 4), torch.ones(3, 1, 4)

    result = ReferenceBackend.get_impl_cls()(2, 4, 1.0, 1).forward(
        torch.nn.Module(), query, key, key, torch.empty(0), None, output
    )

    assert torch.equal(result, torch.full((3, 2, 4), 7.0))
