"""Numbers, texts and arrays of numpy are taken where Python's are: a script has them from ``linspace``, or a table."""

from __future__ import annotations

import asyncio
from enum import IntEnum

import numpy as np
import pytest
import torch
from support.async_engine import greedy
from support.fake_engine import continuation

from vllm_ext import PoolingParams, SamplingParams
from vllm_ext.errors import InvalidRequest


class Level(IntEnum):
    THREE = 3


class Own(int):
    pass


GIVEN = [
    ("temperature", np.float32(0.5), 0.5),
    ("temperature", np.float64(0.5), 0.5),
    ("temperature", np.int64(1), 1),
    ("top_p", np.float16(0.5), 0.5),
    ("min_p", np.float64(0.25), 0.25),
    ("repetition_penalty", np.float32(1.5), 1.5),
    ("n", np.int64(2), 2),
    ("top_k", np.int32(7), 7),
    ("seed", np.uint64(2**64 - 1), 2**64 - 1),
    ("max_tokens", np.int64(4), 4),
    ("max_tokens", Own(4), 4),
    ("min_tokens", Level.THREE, 3),
    ("logprobs", np.int8(-1), -1),
    ("prompt_logprobs", np.int64(2), 2),
    ("stop", np.str_("end"), ["end"]),
    ("bad_words", np.array(["a", "b"]), ["a", "b"]),
    ("stop_token_ids", np.array([5, 2, 5]), [5, 2]),
    ("stop_token_ids", np.array(5), [5]),
    ("stop_token_ids", torch.tensor([5, 2]), [5, 2]),
    ("stop", np.array("end"), ["end"]),
    ("allowed_token_ids", torch.tensor(4), [4]),
    ("allowed_token_ids", range(3), [0, 1, 2]),
    ("allowed_token_ids", frozenset([np.int64(4)]), [4]),
    ("logit_bias", {np.int64(3): np.float32(0.5), 4: np.int8(-1)}, {3: 0.5, 4: -1}),
]


@pytest.mark.parametrize("given", [np.True_, np.False_])
def test_true_and_false_are_kept_as_pythons_own(given):
    names = ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output")
    sampling = SamplingParams(**dict.fromkeys(names, given))
    pooling = PoolingParams(use_activation=given, skip_reading_prefix_cache=given)

    kept = [*(getattr(sampling, name) for name in names), pooling.use_activation, pooling.skip_reading_prefix_cache]
    assert all(value is bool(given) for value in kept)


def plain_types(value: object) -> set[type]:
    if isinstance(value, dict):
        return {type(part) for item in value.items() for part in item}
    return {type(part) for part in value} if isinstance(value, list) else {type(value)}


@pytest.mark.parametrize("name, given, expected", GIVEN, ids=str)
def test_a_sampling_parameter_is_kept_as_pythons_own(name, given, expected):
    value = getattr(SamplingParams(**{name: given}), name)

    assert value == expected
    assert plain_types(value) <= {int, float, str}


def test_a_pooling_parameter_is_kept_as_pythons_own():
    params = PoolingParams(task=np.str_("embed"), dimensions=np.int64(3), truncate_prompt_tokens=np.int32(-1))

    values = (params.task, params.dimensions, params.truncate_prompt_tokens)
    assert [type(value) for value in values] == [str, int, int]
    assert values == ("embed", 3, -1)


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"max_tokens": np.float64(3.0)}, r"max_tokens is np\.float64\(3\.0\); it takes an integer"),
        ({"temperature": np.float32("nan")}, r"temperature is np\.float32\(nan\); it takes a number"),
        ({"ignore_eos": np.int64(1)}, r"ignore_eos is np\.int64\(1\); it takes true or false"),
        ({"ignore_eos": np.array([True])}, r"ignore_eos is array\(\[ True\]\); it takes true or false"),
        ({"n": np.True_}, r"n is np\.True_; it takes an integer"),
        ({"top_p": torch.tensor(0.5)}, r"top_p is tensor\(0\.5000\); it takes a number"),
        ({"stop_token_ids": np.array([[1]])}, r"stop_token_ids is array\(\[\[1\]\]\); it takes a list of token ids"),
        ({"stop_token_ids": np.array([1.0])}, r"stop_token_ids is array\(\[1\.\]\); it takes a list of token ids"),
        ({"stop_token_ids": np.array(1.0)}, r"stop_token_ids is array\(1\.\); it takes a list of token ids"),
        ({"stop": b"x"}, "stop is b'x'; it takes a string or a list of strings"),
        ({"stop": {"x": 1}}, "stop is {'x': 1}; it takes a string or a list of strings"),
    ],
)
def test_what_is_of_another_kind_is_refused_as_before(given, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        SamplingParams(**given)


@pytest.mark.parametrize(
    "prompts",
    [
        [np.int64(1), Own(2)],
        [[np.int64(1), 2]],
        np.array([1, 2]),
        np.array([[1, 2]]),
        [np.array([1, 2], dtype=np.int32)],
        torch.tensor([1, 2]),
        {"prompt_token_ids": np.array([1, 2])},
    ],
    ids=repr,
)
def test_token_ids_may_be_numpys(make_llm, prompts):
    (output,) = make_llm().generate(prompts, greedy(3))

    assert output.prompt_token_ids == [1, 2]
    assert {*map(type, output.prompt_token_ids)} == {int}
    assert output.outputs[0].token_ids == continuation([1, 2], 3)


def test_an_array_has_several_prompts(make_llm):
    llm = make_llm()

    assert [o.prompt_token_ids for o in llm.generate(np.array([[1, 2], [3, 4]]), greedy(1))] == [[1, 2], [3, 4]]
    assert [o.prompt for o in llm.generate(np.array(["a", "b"]), greedy(1))] == ["a", "b"]


def test_an_array_of_no_token_ids_is_refused(make_llm):
    with pytest.raises(InvalidRequest, match=r"prompt 0: it is 1\.0 \(float\)"):
        make_llm().generate(np.array([1.0, 2.0]), greedy())


def test_numbers_of_numpy_pass_to_an_engine_core(make_async_llm):
    params = greedy(np.int64(3))
    params.presence_penalty = np.float64(0.0)

    async def ask(engine):
        states = [state async for state in engine.generate([np.int64(1), 2], params, priority=np.int64(0))]
        return states[-1].outputs[0].token_ids

    assert asyncio.run(ask(make_async_llm())) == continuation([1, 2], 3)


def test_a_priority_that_is_left_open_is_0(make_llm):
    llm = make_llm(policy="priority")

    assert len(llm.generate([[1], [2]], greedy(), priority=None)) == 2
    assert len(llm.generate([[1], [2]], greedy(), priority=[np.int64(3), 0])) == 2


def test_the_id_of_a_request_that_cannot_pass_on_is_refused(make_llm):
    engine = make_llm().llm_engine

    with pytest.raises(InvalidRequest, match="request .* cannot be served: Encoding objects of type numpy.str_"):
        engine.add_request(np.str_("a"), [1], greedy())
    assert not engine.has_unfinished_requests()


def test_a_setting_may_be_numpys(make_cpu_llm):
    llm = make_cpu_llm(None, max_num_seqs=np.int64(3), enforce_eager=np.True_)

    assert llm.llm_engine.vllm_config.scheduler_config.max_num_seqs == 3
