"""The forms in which prompts may be given."""

from __future__ import annotations

import pytest

from vllm_ext.engine.inputs.prompts import ParsedPrompt, parse_prompt, split_prompts
from vllm_ext.errors import InvalidRequest


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("text", ParsedPrompt("text", None)),
        ([1, 2], ParsedPrompt(None, [1, 2])),
        ((1, 2), ParsedPrompt(None, [1, 2])),
        ({"prompt": "text"}, ParsedPrompt("text", None)),
        ({"prompt_token_ids": [1, 2]}, ParsedPrompt(None, [1, 2])),
        ({"prompt_token_ids": [1, 2], "prompt": "text"}, ParsedPrompt("text", [1, 2])),
        ({"prompt": "text", "multi_modal_data": None, "cache_salt": None}, ParsedPrompt("text", None)),
    ],
)
def test_accepted_forms(prompt, parsed):
    assert parse_prompt(prompt) == parsed


@pytest.mark.parametrize(
    ("prompts", "num_prompts"),
    [("text", 1), ([1, 2, 3], 1), ({"prompt": "text"}, 1), (["a", [1]], 2), ([[1, 2]], 1), ([], 0)],
)
def test_a_list_holds_several_prompts_unless_it_holds_token_ids(prompts, num_prompts):
    assert len(split_prompts(prompts)) == num_prompts


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (3.5, r"3\.5 \(float\)"),
        ([1, "a"], r"'a' \(str\) at position 1"),
        ([1, True], r"True \(bool\) at position 1"),
        ({"prompt_token_ids": "abc"}, r"'prompt_token_ids' is 'abc' \(str\)"),
        ({"prompt": [1]}, r"'prompt' is \[1\] \(list\)"),
        ({}, "neither 'prompt' nor 'prompt_token_ids'"),
        (
            {"prompt": "x", "multi_modal_data": {"image": 1}},
            r"'multi_modal_data' is \{'image': 1\} \(dict\); it takes None alone: the engine takes text and token ids",
        ),
        (
            {"prompt": "x", "cache_salt": "a"},
            r"'cache_salt' is 'a' \(str\); it takes None alone: the prefix cache",
        ),
        ({"multi_modal_data": None}, "neither 'prompt' nor 'prompt_token_ids'"),
        ({"promt": "x"}, "unknown key 'promt' .did you mean 'prompt'"),
    ],
)
def test_other_forms_are_refused_with_what_was_given_and_what_is_accepted(prompt, complaint):
    with pytest.raises(InvalidRequest, match=complaint) as error:
        parse_prompt(prompt)

    assert "a prompt is a text, a list of token ids, {'prompt': text}" in str(error.value)


def test_a_long_value_is_shortened_in_the_message():
    with pytest.raises(InvalidRequest) as error:
        parse_prompt({"prompt": ["x" * 10_000]})

    assert len(str(error.value)) < 400
