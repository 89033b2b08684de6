"""SamplingParams refuse what is out of range, by name."""

import copy
import pickle
import re

import msgspec
import pytest

from vllm_ext import PoolingParams, SamplingParams
from vllm_ext.contracts.sampling_params import WORKER_PARAMS
from vllm_ext.errors import ConfigError, InvalidRequest


def test_defaults_are_those_of_vllm():
    params = SamplingParams()

    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed, params.n) == (
        1,
        1,
        0,
        0,
        None,
        1,
    )
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0, 0, 1)
    assert (params.max_tokens, params.min_tokens, params.ignore_eos) == (16, 0, False)
    assert (params.stop, params.stop_token_ids, params.bad_words, params.include_stop_str_in_output) == (
        [],
        [],
        [],
        False,
    )
    assert (params.logprobs, params.prompt_logprobs, params.logit_bias, params.allowed_token_ids) == (None,) * 4
    assert (params.detokenize, params.skip_special_tokens) == (True, True)


def test_the_environment_says_how_many_completions_a_request_may_have(monkeypatch):
    assert SamplingParams(n=16384).n == 16384
    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "3")
    assert SamplingParams(n=3).n == 3
    with pytest.raises(InvalidRequest, match="n is 4; it takes an integer, from 1 to 3"):
        SamplingParams(n=4)

    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "20000")
    assert SamplingParams(n=20000).n == 20000


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "1e3"])
def test_a_limit_of_completions_that_is_no_number_is_an_error(monkeypatch, text):
    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", text)

    assert SamplingParams().n == 1
    with pytest.raises(ConfigError, match=f"VLLM_MAX_N_SEQUENCES is '{text}'; it takes the most completions"):
        SamplingParams(n=2)


@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_a_single_text_becomes_a_list(name):
    assert getattr(SamplingParams(**{name: "\n"}), name) == ["\n"]


@pytest.mark.parametrize("temperature, greedy", [(0, True), (0.0, True), (1e-6, True), (0.1, False), (1, False)])
def test_greedy_is_decided_by_the_temperature(temperature, greedy):
    assert SamplingParams(temperature=temperature).is_greedy is greedy


def test_a_greedy_request_has_no_use_for_limits_of_a_draw():
    params = SamplingParams(temperature=0, top_p=0.5, top_k=3, min_p=0.1)

    assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)
    assert params.worker_params() == ["temperature"]


def test_a_seed_of_minus_1_is_none():
    assert SamplingParams(seed=-1).seed is None


@pytest.mark.parametrize(
    "edge",
    [
        *({"top_p": 1}, {"top_p": 1e-9}, {"top_k": -1}, {"top_k": 0}, {"top_k": 10**9}, {"min_p": 0}, {"min_p": 1}),
        *({"presence_penalty": -2}, {"presence_penalty": 2}, {"frequency_penalty": -2.0}, {"frequency_penalty": 2.0}),
        *({"repetition_penalty": 1e-3}, {"min_tokens": 16}, {"min_tokens": 99, "max_tokens": None}),
        *({"logprobs": 0}, {"logprobs": -1}, {"prompt_logprobs": 0}, {"prompt_logprobs": -1}, {"n": 1}, {"n": 100}),
        *({"logit_bias": {}}, {"logit_bias": {5: -100}}, {"allowed_token_ids": [3]}, {"seed": 2**64 - 1}),
    ],
    ids=str,
)
def test_values_at_the_edge_of_their_range_are_taken(edge):
    params = SamplingParams(**edge)

    for name, value in edge.items():
        assert getattr(params, name) == value


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": -0.5}, r"temperature is -0\.5; it takes a number, from 0\.0 to 1e\+30"),
        ({"temperature": 1e39}, r"temperature is 1e\+39; it takes a number, from 0\.0 to 1e\+30"),
        ({"temperature": float("nan")}, "temperature is nan; it takes a number"),
        ({"temperature": float("inf")}, "temperature is inf; it takes a number"),
        ({"temperature": "hot"}, "temperature is 'hot'; it takes a number"),
        ({"temperature": 10**400}, "temperature is 1000.*; it takes a number"),
        ({"top_p": 0}, r"top_p is 0; it takes a number, above 0\.0 and at most 1\.0"),
        ({"top_p": 1.01}, r"top_p is 1\.01; it takes a number, above 0\.0 and at most 1\.0"),
        ({"top_p": float("nan")}, "top_p is nan; it takes a number"),
        ({"top_k": -2}, "top_k is -2; it takes an integer, from -1 to 2147483647"),
        ({"top_k": 2**63}, "top_k is 9223372036854775808; it takes an integer, from -1 to 2147483647"),
        ({"top_k": 1.5}, r"top_k is 1\.5; it takes an integer, from -1 to 2147483647"),
        ({"min_p": -0.1}, r"min_p is -0\.1; it takes a number, from 0\.0 to 1\.0"),
        ({"min_p": 1.1}, r"min_p is 1\.1; it takes a number, from 0\.0 to 1\.0"),
        ({"presence_penalty": 2.1}, r"presence_penalty is 2\.1; it takes a number, from -2\.0 to 2\.0"),
        ({"frequency_penalty": -3}, r"frequency_penalty is -3; it takes a number, from -2\.0 to 2\.0"),
        ({"repetition_penalty": 0}, r"repetition_penalty is 0; it takes a number, from 1e-30 to 1e\+30"),
        ({"repetition_penalty": 1e-46}, r"repetition_penalty is 1e-46; it takes a number, from 1e-30"),
        ({"repetition_penalty": float("inf")}, r"repetition_penalty is inf; it takes a number, from 1e-30 to 1e\+30"),
        ({"n": 0}, "n is 0; it takes an integer, at least 1"),
        ({"n": True}, "n is True; it takes an integer, at least 1"),
        ({"n": 16385}, "n is 16385; it takes an integer, from 1 to 16384, .* VLLM_MAX_N_SEQUENCES can change"),
        ({"n": 10**9}, "n is 1000000000; it takes an integer, from 1 to 16384"),
        ({"n": 2, "temperature": 0}, "n is 2, and the temperature 0: .*; it takes 1 with a temperature of 0"),
        ({"max_tokens": 0}, "max_tokens is 0; it takes an integer, at least 1"),
        ({"max_tokens": 2.5}, r"max_tokens is 2\.5; it takes an integer"),
        ({"max_tokens": True}, "max_tokens is True; it takes an integer"),
        ({"min_tokens": -1}, "min_tokens is -1; it takes an integer, at least 0"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5; it takes at most max_tokens, 4"),
        ({"seed": "x"}, "seed is 'x'; it takes an integer"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it takes an integer, from"),
        ({"stop": 3}, "stop is 3; it takes a string or a list of strings"),
        ({"stop": ["a", ""]}, "stop holds an empty string"),
        ({"stop": ["a", "b\ud800"]}, r"stop holds 'b\\ud800', which is not valid Unicode: '\\ud800'"),
        ({"stop": "a", "detokenize": False}, r"stop is \['a'\], and detokenize false; stop strings need the text"),
        ({"bad_words": [1]}, r"bad_words is \[1\]; it takes a string or a list of strings"),
        ({"bad_words": ""}, "bad_words holds an empty string"),
        ({"stop_token_ids": True}, "stop_token_ids is True; it takes a list of token ids"),
        ({"stop_token_ids": [1, 2**63]}, "stop_token_ids has token id 9223372036854775808; .* at most 64 bits"),
        ({"stop_token_ids": ["a"]}, r"stop_token_ids is \['a'\]; it takes a list of token ids"),
        ({"allowed_token_ids": []}, r"allowed_token_ids is \[\]; it takes at least one token id, or None for all"),
        ({"allowed_token_ids": "abc"}, "allowed_token_ids is 'abc'; it takes a list of token ids"),
        ({"logit_bias": [1]}, r"logit_bias is \[1\]; it takes a dictionary of token ids to finite numbers"),
        ({"logit_bias": {"a": 1}}, "logit_bias is {'a': 1}; it takes a dictionary of token ids to finite numbers"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias is {1: inf}; it takes a dictionary of token ids"),
        ({"logit_bias": {1: 1.0, "5": 2.0}}, "to finite numbers, and the key '5' is no integer$"),
        ({"logit_bias": {1: 1.0, 7: "x"}}, "to finite numbers, and that of 7 is 'x'$"),
        ({"logit_bias": [1]}, "to finite numbers$"),
        ({"logprobs": -2}, "logprobs is -2; it takes an integer, at least -1"),
        ({"logprobs": True}, "logprobs is True; it takes an integer, at least -1"),
        ({"prompt_logprobs": 1.0}, r"prompt_logprobs is 1\.0; it takes an integer, at least -1"),
        ({"ignore_eos": "yes"}, "ignore_eos is 'yes'; it takes true or false"),
        ({"detokenize": 1}, "detokenize is 1; it takes true or false"),
        ({"skip_special_tokens": None}, "skip_special_tokens is None; it takes true or false"),
        ({"include_stop_str_in_output": 0}, "include_stop_str_in_output is 0; it takes true or false"),
    ],
)
def test_a_value_out_of_range_is_refused_with_parameter_value_and_range(wrong, message):
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**wrong)


def test_an_unknown_parameter_is_refused():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.5)


@pytest.mark.parametrize("cls", [SamplingParams, PoolingParams])
def test_an_unknown_parameter_is_told_with_those_that_exist(cls):
    public = [name for name in cls.__struct_fields__ if not name.startswith("_")]
    listed = re.escape(", ".join(sorted(public)))

    with pytest.raises(TypeError, match=f"^{cls.__name__} has no parameter 'best_of'; its parameters: {listed}$"):
        cls(best_of=2)
    with pytest.raises(TypeError, match=rf"no parameter '{public[0]}s' \(did you mean '{public[0]}'\?\)"):
        cls(**{f"{public[0]}s": 2})


VLLMS_ALONE = [
    ("flat_logprobs", False, True, "flat_logprobs is True; it takes False alone: log probabilities are a dictionary"),
    (
        *("spaces_between_special_tokens", True, False),
        "spaces_between_special_tokens is False; it takes True alone: the model's tokenizer says how",
    ),
    (
        *("structured_outputs", None, {"choice": ["a"]}),
        r"structured_outputs is \{'choice': \['a'\]\}; it takes None alone: the engine holds no output to a grammar",
    ),
    ("truncate_prompt_tokens", None, 5, "truncate_prompt_tokens is 5; it takes None alone: a prompt is served as it"),
]


def test_all_parameters_that_vllm_alone_has_are_tested():
    assert [name for name, *_ in VLLMS_ALONE] == [*SamplingParams._fixed]


@pytest.mark.parametrize("name, default, other, complaint", VLLMS_ALONE)
def test_a_parameter_that_vllm_alone_has_may_stand_at_its_default(name, default, other, complaint):
    params = SamplingParams(**{name: default, "seed": 3})

    assert params == SamplingParams(seed=3)
    assert getattr(params, name) is default
    with pytest.raises(InvalidRequest, match=f"^{complaint}"):
        SamplingParams(**{name: other})


def test_a_clone_shares_nothing_with_its_original():
    original = SamplingParams(stop=["a"], logit_bias={1: 2.0}, extra_args={"words": ["b"]}, seed=3)

    clone = original.clone()

    assert clone == original
    clone.stop.append("c")
    clone.logit_bias[2] = 1.0
    clone.extra_args["words"].append("c")
    assert original == SamplingParams(stop=["a"], logit_bias={1: 2.0}, extra_args={"words": ["b"]}, seed=3)


@pytest.mark.parametrize("params", [SamplingParams(seed=3, stop="x", logit_bias={1: 2.0}), PoolingParams(dimensions=2)])
def test_parameters_can_be_copied_and_pickled(params):
    assert copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params


def test_parameters_for_the_worker_are_told_from_those_of_the_engine():
    assert {*SamplingParams.__struct_fields__} >= WORKER_PARAMS
    assert (
        SamplingParams(temperature=1, max_tokens=5, stop="x", stop_token_ids=[1], ignore_eos=True).worker_params() == []
    )
    assert SamplingParams(top_k=5, logprobs=0, bad_words="x").worker_params() == ["top_k", "logprobs", "bad_words"]


def test_prompt_log_probabilities_need_every_token_computed():
    assert SamplingParams(prompt_logprobs=0).skip_reading_prefix_cache
    assert not SamplingParams(logprobs=0).skip_reading_prefix_cache


def test_a_bias_with_more_digits_than_an_integer_of_64_bits_can_pass_to_another_process():
    params = SamplingParams(logit_bias={1: 10**300, 2: -1})

    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)

    assert sent.logit_bias == {1: 1e300, 2: -1}
