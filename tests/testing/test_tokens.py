"""Tokens of two platforms, and what counts as the same."""

from __future__ import annotations

import pytest
from support.hook_platform import install_platform
from support.reference import greedy_reference as transformers_reference

from vllm_ext.testing import Greedy, assert_equal_tokens, assert_same_tokens, greedy_reference, greedy_tokens

PROMPTS = [[5, 17, 300, 4], [250, 8, 8, 41]]
DECIDED = [Greedy([7, 8, 9], [0.5, 0.4, 0.3]), Greedy([1, 2], [0.2, 0.1])]

NEXT_TOKEN = """
class NextToken(Worker):
    def sample_tokens(self, grammar_output):
        output = super().sample_tokens(grammar_output)
        output.sampled_token_ids = [[token + 1 for token in ids] for ids in output.sampled_token_ids]
        return output
"""


def test_the_same_tokens_are_equal():
    assert_equal_tokens([[7, 8, 9], [1, 2]], DECIDED)


@pytest.mark.parametrize(
    ("token_ids", "text"),
    [
        (
            [[7, 8, 9], [1, 3]],
            r"^prompt 1: token 1 is 3, and 2 of the reference, where it leads by 0\.1; the tokens be",
        ),
        ([[7, 8], [1, 2]], "^prompt 0 got 2 tokens, and 3 of the reference$"),
        ([[7, 8, 9]], "^there are tokens for 1 prompts, and the reference has 2$"),
    ],
)
def test_a_difference_is_told_with_its_place(token_ids, text):
    with pytest.raises(AssertionError, match=text):
        assert_equal_tokens(token_ids, DECIDED)


def test_after_a_choice_between_nearly_equal_logits_nothing_is_compared():
    leads = [1.0] * 38 + [1e-4, 1.0]

    assert_equal_tokens([[1] * 38 + [5, 6]], [Greedy([1] * 40, leads)])

    with pytest.raises(AssertionError, match="prompt 0: token 37 is 5"):
        assert_equal_tokens([[1] * 37 + [5, 5, 6]], [Greedy([1] * 40, leads)])


def test_a_reference_that_decides_little_is_no_reference():
    text = (
        "^the reference decides 1 of 3 tokens, and a comparison takes 95%: at the others its two best logits are "
        "within 0.001 of each other; take others, or fewer tokens$"
    )

    with pytest.raises(AssertionError, match=text):
        assert_equal_tokens([[1, 2, 3]], [Greedy([1, 2, 3], [1.0, 1e-4, 1.0])])


def test_a_platform_is_not_compared_with_itself():
    with pytest.raises(ValueError, match="platform 'cpu' would be compared with itself"):
        assert_same_tokens("cpu")


def test_the_reference_has_the_tokens_and_leads_of_transformers(random_llama):
    ours = greedy_reference(PROMPTS, max_tokens=6, model=random_llama)

    reference = transformers_reference(random_llama, PROMPTS, 6)
    assert_equal_tokens([each.token_ids for each in ours], reference)
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.leads[: theirs.num_decided] == pytest.approx(theirs.leads[: theirs.num_decided], abs=1e-4)


def test_a_platform_that_computes_right_has_the_tokens_of_the_cpu(plugins):
    install_platform(plugins)

    assert_same_tokens("npu", max_tokens=8)


def test_one_that_computes_something_else_has_not(plugins):
    install_platform(plugins, "vllm_config.parallel_config.worker_cls = 'acme_npu.NextToken'", NEXT_TOKEN)

    with pytest.raises(AssertionError, match="prompt 0: token 0 is "):
        assert_same_tokens("npu", max_tokens=2)


def test_tokens_are_those_of_the_platform_that_was_named(plugins):
    install_platform(plugins, hook="raise ValueError('no device')")

    with pytest.raises(ValueError, match="no device"):
        greedy_tokens("npu", max_tokens=1)
