"""Sampling parameters are checked against model and worker, and get what the tokenizer knows."""

from __future__ import annotations

import pytest
from support.fake_engine import FakeWorker
from support.vocabularies import byte_level_tokenizer
from tokenizers import normalizers

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.engine.inputs.params_processor import ParamsProcessor
from vllm_ext.engine.inputs.tokenizer import FastTokenizer
from vllm_ext.errors import InvalidRequest
from vllm_ext.worker.worker import Worker

TOKENIZER = byte_level_tokenizer()
PROCESSOR = ParamsProcessor(FastTokenizer(TOKENIZER), frozenset({0, 7}), TOKENIZER.get_vocab_size())


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text).ids)


def test_parameters_that_need_nothing_stay_as_they_are():
    for params in (SamplingParams(), SamplingParams(temperature=0, stop="x"), SamplingParams(top_p=0.5, logprobs=2)):
        assert PROCESSOR.process_params(params) == params


def test_what_the_user_changes_later_is_of_later_requests():
    params = SamplingParams(seed=1, logit_bias={3: 1.0}, stop=["x"])
    made = PROCESSOR.process_params(params)

    params.seed = 2
    params.logit_bias[3] = 9.0
    params.stop.append("y")

    assert (made.seed, made.logit_bias, made.stop) == (1, {3: 1.0}, ["x"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens is 0; it takes an integer, at least 1"),
        ("temperature", -3, "temperature is -3; it takes a number, from 0.0"),
        ("allowed_token_ids", [10**6], "allowed_token_ids has token id 1000000"),
    ],
)
def test_what_was_assigned_is_checked_like_what_it_was_made_of(name, value, message):
    params = SamplingParams()
    setattr(params, name, value)

    with pytest.raises(InvalidRequest, match=message):
        PROCESSOR.process_params(params)


def test_a_stop_string_that_was_assigned_is_one():
    params = SamplingParams()
    params.stop = "xyz"

    assert PROCESSOR.process_params(params).stop == ["xyz"]


def test_those_of_the_user_are_never_changed():
    params = SamplingParams(min_tokens=2, bad_words=["the"])

    made = PROCESSOR.process_params(params)

    assert (params.all_stop_token_ids, params.bad_words_token_ids) == (frozenset(), ())
    assert made.min_tokens == 2


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_min_tokens_hold_back_end_of_sequence_and_stop_tokens(ignore_eos):
    params = SamplingParams(min_tokens=1, stop_token_ids=[3, 10**6, -1], ignore_eos=ignore_eos)

    assert PROCESSOR.process_params(params).all_stop_token_ids == {0, 3, 7}


def test_a_bad_word_is_forbidden_at_the_beginning_and_after_a_space():
    made = PROCESSOR.process_params(SamplingParams(bad_words=["a", " a", "again", "xq"]))

    assert len(ids("a")) == len(ids(" a")) == 1
    assert made.bad_words_token_ids[:2] == (ids("a"), ids(" a"))
    assert ids("again") in made.bad_words_token_ids
    assert len(set(made.bad_words_token_ids)) == len(made.bad_words_token_ids)


@pytest.mark.parametrize("word", ["\n", "\na", " ", "\t a"])
def test_a_bad_word_that_brings_white_space_of_its_own_is_forbidden_as_it_stands(word):
    assert PROCESSOR.process_params(SamplingParams(bad_words=[word])).bad_words_token_ids == (ids(word),)


def test_a_bad_word_that_is_no_token_is_refused():
    tokenizer = byte_level_tokenizer()
    tokenizer.normalizer = normalizers.Replace("x", "")

    with pytest.raises(InvalidRequest, match="bad_words has 'x', which the tokenizer turns into no token at all"):
        ParamsProcessor(FastTokenizer(tokenizer), frozenset(), 420).process_params(SamplingParams(bad_words=["x"]))


def test_a_bad_word_with_a_token_that_the_model_does_not_have_forbids_nothing():
    tokenizer = byte_level_tokenizer()
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["FOO"])
    processor = ParamsProcessor(FastTokenizer(tokenizer), frozenset(), size)

    assert processor.process_params(SamplingParams(bad_words=["aFOO"])).bad_words_token_ids == ()
    assert processor.process_params(SamplingParams(bad_words=["aFOO", "a"])).bad_words_token_ids[0] == ids("a")


@pytest.mark.parametrize("values", [{}, {"min_tokens": 1}])
def test_bad_words_that_leave_no_allowed_token_are_refused(values):
    (a,), (b,) = ids("a"), ids("b")
    allowed = [a, b] if not values else [a, b, 7]
    params = SamplingParams(bad_words=["a", "b"], allowed_token_ids=allowed, **values)

    with pytest.raises(InvalidRequest, match=r"bad_words is \['a', 'b'\], which leaves none of allowed_token_ids"):
        PROCESSOR.process_params(params)
    PROCESSOR.process_params(SamplingParams(bad_words=["a", "b"], allowed_token_ids=[*allowed, a + b + 1]))


@pytest.mark.parametrize(
    ("words", "dead_end"),
    [
        (["aa", "ab"], True),
        (["b", "aa"], True),
        (["aaa", "ab"], True),
        (["aa", "bb"], False),
        (["ca", "cb"], False),
        (["aaa", "bab"], False),
    ],
)
def test_bad_words_that_leave_no_allowed_token_after_others_are_refused(words, dead_end):
    (a,), (b,) = ids("a"), ids("b")
    params = SamplingParams(bad_words=words, allowed_token_ids=[a, b])
    assert all(len(ids(word)) == len(word) for word in words)

    if not dead_end:
        PROCESSOR.process_params(params)
        return
    with pytest.raises(InvalidRequest, match=r"leaves none of allowed_token_ids \[\d+, \d+\] after the tokens"):
        PROCESSOR.process_params(params)


def test_tokens_that_end_a_request_are_left_once_min_tokens_have_come():
    (a,) = ids("a")
    allowed = {"bad_words": ["aa"], "allowed_token_ids": [a, 7]}

    PROCESSOR.process_params(SamplingParams(min_tokens=1, **allowed))
    with pytest.raises(InvalidRequest, match="leaves none of allowed_token_ids"):
        PROCESSOR.process_params(SamplingParams(min_tokens=2, **allowed))


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(InvalidRequest, match="bad_words has .* which cannot be tokenized"):
        PROCESSOR.process_params(SamplingParams(bad_words=["\ud800"]))


def test_a_worker_says_what_it_acts_on():
    assert WorkerBase.get_supported_sampling_params(None) == {"temperature", "seed"}
    assert {"top_p", "logprobs", "min_tokens", "temperature"} <= Worker.get_supported_sampling_params(None)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"top_p": 0.5}, "top_p"),
        ({"logprobs": 0}, "logprobs"),
        ({"min_tokens": 1, "min_p": 0.1, "temperature": 0.5}, "min_p, min_tokens"),
        ({"bad_words": "x"}, "bad_words"),
    ],
)
def test_what_the_worker_does_not_act_on_is_refused(make_llm, values, named):
    llm = make_llm()
    message = (
        rf"prompt 0: worker .* of the chosen platform does not act on {named}; it acts on: seed, temperature\. "
        rf"Leave out what it does not, or choose a platform whose worker does"
    )

    with pytest.raises(InvalidRequest, match=message):
        llm.generate("the", SamplingParams(**values))
    assert llm.generate("the", SamplingParams(temperature=0.5, seed=1, max_tokens=2, stop="x"))[0].finished


def test_a_worker_can_act_on_some(make_llm):
    class Some(FakeWorker):
        def get_supported_sampling_params(self):
            return frozenset({"temperature", "top_p"})

    llm = make_llm(worker_cls=Some)

    assert llm.generate("the", SamplingParams(top_p=0.5, max_tokens=2))[0].finished
    with pytest.raises(InvalidRequest, match="does not act on seed; it acts on: temperature, top_p"):
        llm.generate("the", SamplingParams(seed=1))
