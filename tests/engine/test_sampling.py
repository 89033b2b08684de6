"""Each sampling parameter has its effect through ``LLM.generate``, on the in-tree worker and a random Llama."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
import torch
from support.reference import assert_equal_tokens, greedy_reference, reference_logits
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from vllm_ext.contracts.outputs import CompletionOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm import LLM
from vllm_ext.errors import InvalidRequest

VOCAB, EOS = 600, 0
PROMPTS = [random.Random(i).choices(range(1, VOCAB), k=length) for i, length in enumerate((5, 17, 1, 30))]
PROMPT = PROMPTS[0]


@pytest.fixture
def llm(make_cpu_llm, random_llama) -> LLM:
    return make_cpu_llm(random_llama, max_num_seqs=8)


def complete(llm: LLM, prompt: list[int] = PROMPT, **values) -> CompletionOutput:
    values = {"temperature": 0, "max_tokens": 12} | values
    return llm.generate([prompt], SamplingParams(**values))[0].outputs[0]


def tokens(llm: LLM, **values) -> list[list[int]]:
    """Of all prompts in one batch."""
    params = SamplingParams(**({"temperature": 0, "max_tokens": 12, "ignore_eos": True} | values))
    return [output.outputs[0].token_ids for output in llm.generate(list(PROMPTS), params)]


@pytest.mark.parametrize("values", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=lambda v: next(iter(v)))
def test_the_narrowest_choice_is_the_likeliest_token(llm, random_llama, values):
    drawn = tokens(llm, temperature=1.0, **values)

    assert_equal_tokens(drawn, greedy_reference(random_llama, PROMPTS, 12))


@pytest.mark.parametrize(
    ("values", "warp"),
    [
        ({"top_p": 0.5}, TopPLogitsWarper(0.5)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
        ({"top_k": 3}, lambda _, scores: scores.masked_fill(scores < scores.topk(3).values[:, -1:], float("-inf"))),
    ],
    ids=["top_p", "min_p", "top_k"],
)
def test_every_token_drawn_is_one_that_the_limit_leaves(llm, random_llama, values, warp):
    drawn = tokens(llm, temperature=1.0, seed=5, **values)

    greedy = tokens(llm)
    for prompt, ids in zip(PROMPTS, drawn, strict=True):
        scores = warp(None, reference_logits(random_llama, prompt + ids)[len(prompt) - 1 : -1])
        assert scores.gather(1, torch.tensor(ids).unsqueeze(1)).isfinite().all()
    assert drawn != greedy
    assert drawn != tokens(llm, temperature=1.0, seed=5), "the limit changes nothing here"


def test_the_repetition_penalty_gives_the_tokens_of_transformers(llm, random_llama):
    (prompt,) = PROMPTS[1:2]
    processor = RepetitionPenaltyLogitsProcessor(3.0)

    def process(logits, output):
        return processor(torch.tensor([prompt + output]), logits[None].clone())[0]

    reference = greedy_reference(random_llama, [prompt], 20, process=process)
    assert_equal_tokens([complete(llm, prompt, max_tokens=20, repetition_penalty=3.0).token_ids], reference)
    assert reference[0].token_ids != complete(llm, prompt, max_tokens=20).token_ids


def test_presence_and_frequency_penalties_by_their_definition(llm, random_llama):
    # A bias towards few tokens, so that they repeat.
    bias = {7: 14.0, 8: 13.0, 9: 13.5}
    values = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": bias}

    def process(logits, output):
        logits = logits.clone()
        for token, count in Counter(output).items():
            logits[token] -= 1.5 + 0.5 * count
        return logits

    references = greedy_reference(random_llama, PROMPTS, 12, bias, process)
    assert_equal_tokens(tokens(llm, **values), references)
    assert [r.token_ids for r in references] != tokens(llm, logit_bias=bias)


def test_a_bias_is_added_to_the_logits(llm, random_llama):
    bias = {3: 4.0, 8: 5.0, 100: -50.0, 599: 3.0}

    assert_equal_tokens(tokens(llm, logit_bias=bias), greedy_reference(random_llama, PROMPTS, 12, bias))
    assert tokens(llm, logit_bias=bias) != tokens(llm)


def test_only_allowed_tokens_are_generated(llm, random_llama):
    allowed = list(range(5, 300, 7))
    bias = {token: float("-inf") for token in range(VOCAB) if token not in allowed}

    assert_equal_tokens(
        tokens(llm, allowed_token_ids=allowed), greedy_reference(random_llama, PROMPTS, 12, logit_bias=bias)
    )
    drawn = tokens(llm, allowed_token_ids=allowed, temperature=2.0)
    assert {token for ids in drawn for token in ids} <= set(allowed)


def test_bad_words_do_not_come(llm):
    tokenizer = llm.llm_engine.tokenizer
    ascii_only = {"allowed_token_ids": [i for i in range(1, VOCAB) if tokenizer.decode([i]).isascii()]}
    plain = complete(llm, max_tokens=30, **ascii_only)
    # Two tokens that the tokenizer makes of their text again.
    at, word = next(
        (i, text)
        for i in range(2, 28)
        if tokenizer.encode(text := tokenizer.decode(plain.token_ids[i : i + 2])) == plain.token_ids[i : i + 2]
        and not text.startswith(" ")
        and text not in tokenizer.decode(plain.token_ids[: i + 1])
    )

    without = complete(llm, bad_words=[word], max_tokens=30, **ascii_only)

    assert without.token_ids[: at + 1] == plain.token_ids[: at + 1], "only the last token of the word is forbidden"
    assert without.token_ids[at + 1] != plain.token_ids[at + 1]
    pairs = zip(without.token_ids, without.token_ids[1:], strict=False)
    assert tuple(plain.token_ids[at : at + 2]) not in list(pairs)


@pytest.mark.parametrize("word", ["said", "glad"])
def test_a_bad_word_that_is_one_token_after_a_space_and_several_alone_does_not_come(make_cpu_llm, word):
    llm = make_cpu_llm(None)
    tokenizer = llm.llm_engine.tokenizer
    assert len(tokenizer.encode(word)) > len(tokenizer.encode(f" {word}")) == 1

    def words(**values) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=20, **values)
        return re.findall(r"\w+", llm.generate("It was a truth", params)[0].outputs[0].text)

    assert word in words()
    assert word not in words(bad_words=[word])


def test_min_tokens_come_before_the_end_of_sequence(llm):
    eager = {"logit_bias": {EOS: 100.0}}

    assert complete(llm, **eager).token_ids == [EOS]
    late = complete(llm, min_tokens=5, **eager)
    assert len(late.token_ids) == 6
    assert late.token_ids.index(EOS) == 5
    assert late.finish_reason == "stop"


def test_min_tokens_come_before_a_stop_token(llm):
    eager = {"logit_bias": {44: 100.0, 45: 90.0}, "stop_token_ids": [44], "ignore_eos": True}

    output = complete(llm, min_tokens=3, **eager)

    assert output.token_ids == [45, 45, 45, 44]
    assert (output.finish_reason, output.stop_reason) == ("stop", 44)


def test_ignore_eos_goes_on_after_it(llm):
    output = complete(llm, logit_bias={EOS: 100.0}, ignore_eos=True)

    assert output.token_ids == [EOS] * 12
    assert (output.text, output.finish_reason) == ("", "length")


def test_special_tokens_are_text_if_they_are_not_to_be_skipped(llm):
    output = complete(llm, logit_bias={EOS: 100.0}, ignore_eos=True, skip_special_tokens=False, max_tokens=2)

    assert output.text == llm.llm_engine.tokenizer.convert_ids_to_tokens([EOS])[0] * 2


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_ends_the_text(llm, included):
    plain = complete(llm, ignore_eos=True)
    stop = plain.text[3:6]
    start = plain.text.index(stop)

    output = complete(llm, stop=[stop], include_stop_str_in_output=included)

    assert output.text == plain.text[: start + len(stop) if included else start]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert len(output.token_ids) < 12


def test_a_stop_token_is_text_only_if_it_is_to_be_included(llm):
    values = {"logit_bias": {44: 100.0}, "stop_token_ids": [44]}

    assert complete(llm, **values).text == ""
    text = complete(llm, include_stop_str_in_output=True, **values).text
    assert text == llm.llm_engine.tokenizer.decode([44])


def test_without_detokenization_there_are_only_tokens(llm):
    output = complete(llm, detokenize=False, logprobs=2)

    assert output.token_ids == complete(llm).token_ids
    assert output.text == ""
    assert {entry.decoded_token for position in output.logprobs for entry in position.values()} == {None}


def test_the_temperature_of_0_in_a_batch_of_others_is_greedy(llm, random_llama):
    params = [SamplingParams(temperature=t, max_tokens=12, ignore_eos=True, top_k=40) for t in (0, 1, 0, 1)]

    outputs = llm.generate(list(PROMPTS), params)

    token_ids = [output.outputs[0].token_ids for output in outputs[::2]]
    assert_equal_tokens(token_ids, greedy_reference(random_llama, PROMPTS[::2], 12))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logit_bias": {VOCAB: 1.0}}, "prompt 0: logit_bias has token id 600; ids .* go from 0 to 599"),
        ({"allowed_token_ids": [1, -1]}, "allowed_token_ids has token id -1; ids .* go from 0 to 599"),
        ({"logprobs": 601}, "logprobs is 601; it takes an integer from 0 to 600, the size .* or -1"),
        ({"prompt_logprobs": 601}, "prompt_logprobs is 601; it takes an integer from 0 to 600"),
        (
            {"allowed_token_ids": [EOS], "min_tokens": 1},
            r"min_tokens is 1, and every token of allowed_token_ids \[0\] ends the request",
        ),
    ],
    ids=str,
)
def test_what_the_model_has_not_is_refused(llm, values, message):
    with pytest.raises(InvalidRequest, match=message):
        complete(llm, **values)
    assert not llm.llm_engine.has_unfinished_requests()
