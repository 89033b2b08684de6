"""SamplingParams refuse what is out of range, by name."""

import pytest

from vllm_ext import SamplingParams
from vllm_ext.errors import InvalidRequest


def test_defaults_are_those_of_vllm():
    params = SamplingParams()

    assert (params.temperature, params.max_tokens, params.seed, params.ignore_eos) == (1.0, 16, None, False)


def test_a_single_stop_string_becomes_a_list():
    assert SamplingParams(stop="\n").stop == ["\n"]


@pytest.mark.parametrize("temperature, greedy", [(0, True), (0.0, True), (1e-6, True), (0.1, False), (1, False)])
def test_greedy_is_decided_by_the_temperature(temperature, greedy):
    assert SamplingParams(temperature=temperature).is_greedy is greedy


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": -0.5}, r"temperature is -0\.5; it takes a number, at least 0\.0"),
        ({"temperature": float("nan")}, "temperature is nan; it takes a number"),
        ({"temperature": float("inf")}, "temperature is inf; it takes a number"),
        ({"temperature": "hot"}, "temperature is 'hot'; it takes a number"),
        ({"max_tokens": 0}, "max_tokens is 0; it takes an integer, at least 1"),
        ({"temperature": 10**400}, "temperature is 1000.*; it takes a number"),
        ({"stop_token_ids": True}, "stop_token_ids is True; it takes a list of token ids"),
        ({"max_tokens": 2.5}, r"max_tokens is 2\.5; it takes an integer"),
        ({"max_tokens": True}, "max_tokens is True; it takes an integer"),
        ({"seed": "x"}, "seed is 'x'; it takes an integer"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it takes an integer, from"),
        ({"stop": 3}, "stop is 3; it takes a string or a list of strings"),
        ({"stop": ["a", ""]}, "stop holds an empty string"),
        ({"stop_token_ids": ["a"]}, r"stop_token_ids is \['a'\]; it takes a list of token ids"),
        ({"ignore_eos": "yes"}, "ignore_eos is 'yes'; it takes true or false"),
    ],
)
def test_a_value_out_of_range_is_refused_with_parameter_value_and_range(wrong, message):
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**wrong)


def test_an_unknown_parameter_is_refused():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.5)
