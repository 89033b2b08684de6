"""What a platform says about each request, before the engine has it."""

from __future__ import annotations

import asyncio

import pytest
from support.fake_engine import FakePlatform

from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.errors import InvalidRequest, PluginLoadError


class Short(FakePlatform):
    """Generates until there are 10 tokens."""

    def get_max_output_tokens(self, prompt_len):
        return 10 - prompt_len


def num_tokens(llm, prompt, **params):
    (output,) = llm.generate([prompt], SamplingParams(temperature=0, ignore_eos=True, **params))
    return len(output.outputs[0].token_ids)


@pytest.mark.parametrize("max_tokens, expected", [(None, 7), (50, 7), (4, 4)])
def test_a_request_ends_where_the_platform_can_generate_no_more(make_llm, max_tokens, expected):
    assert num_tokens(make_llm(platform=Short()), [1, 2, 3], max_tokens=max_tokens) == expected


def test_parameters_of_the_users_stay_as_they_are(make_llm):
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)

    make_llm(platform=Short()).generate([[1, 2, 3]], params)

    assert params.max_tokens == 50


def test_a_prompt_after_which_nothing_can_be_generated_is_refused(make_llm):
    with pytest.raises(InvalidRequest, match="the prompt has 10 tokens, after which platform 'fake' can generate none"):
        num_tokens(make_llm(platform=Short()), [1] * 10)


class Picky(FakePlatform):
    seen: list = []  # noqa: RUF012 - of one test

    @classmethod
    def validate_request(cls, processed_inputs, params):
        cls.seen.append((processed_inputs, params.max_tokens, current_platform.get()))
        if 7 in processed_inputs["prompt_token_ids"]:
            raise ValueError("no sevens here")
        if 8 in processed_inputs["prompt_token_ids"]:
            raise KeyError("eight")


def test_a_platform_sees_tokens_text_and_parameters_of_each_request(make_llm):
    Picky.seen.clear()
    llm = make_llm(platform=Picky())

    llm.generate([[1, 2], {"prompt": "ab"}], SamplingParams(max_tokens=3))

    (first, second) = Picky.seen
    assert first[0] == {"type": "token", "prompt_token_ids": [1, 2], "prompt": None}
    assert (second[0]["prompt"], second[1]) == ("ab", 3)
    assert isinstance(first[2], Picky)


def test_its_refusal_is_the_users_answer_and_others_are_served(make_llm):
    llm = make_llm(platform=Picky())

    with pytest.raises(InvalidRequest, match="platform 'fake' refuses the request: no sevens here"):
        llm.generate([[1], [7]])
    assert num_tokens(llm, [1], max_tokens=2) == 2


def test_a_hook_that_breaks_is_the_platforms_fault_and_not_the_requests(make_llm):
    with pytest.raises(PluginLoadError, match="platform 'fake' .*Picky.* failed: KeyError: 'eight'"):
        make_llm(platform=Picky()).generate([[8]])


def test_in_an_event_loop_the_refusal_reaches_the_reader(make_async_llm):
    engine = make_async_llm(platform=Picky())

    async def read(prompt):
        return [output async for output in engine.generate(prompt, SamplingParams(max_tokens=2))]

    async def main():
        async with engine:
            results = await asyncio.gather(read([7]), read([1]), return_exceptions=True)
        assert isinstance(results[0], InvalidRequest)
        assert results[1][-1].finished

    asyncio.run(main())
