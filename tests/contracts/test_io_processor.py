"""What an IO processor has that implements no more than it must."""

from __future__ import annotations

import asyncio

from vllm_ext import IOProcessor, SamplingParams
from vllm_ext.contracts.pooling_params import PoolingParams


class Reversed(IOProcessor):
    def pre_process(self, prompt, request_id=None, **kwargs):
        return [prompt[::-1], request_id]

    def post_process(self, outputs, request_id=None, **kwargs):
        return [*outputs, request_id]


def test_pooling_parameters_are_the_users_or_those_of_what_the_model_is_for():
    given = PoolingParams(dimensions=3)

    assert Reversed(None).merge_pooling_params(given) is given
    assert Reversed(None).merge_pooling_params() == PoolingParams(task="plugin")


def test_sampling_parameters_are_the_users_or_the_models():
    given = SamplingParams(temperature=0)

    assert Reversed(None).merge_sampling_params(given) is given
    assert Reversed(None).merge_sampling_params() is None


def test_the_async_methods_do_what_the_others_do():
    assert asyncio.run(Reversed(None).pre_process_async("abc", "id")) == ["cba", "id"]
    assert asyncio.run(Reversed(None).post_process_async([1], "id")) == [1, "id"]
