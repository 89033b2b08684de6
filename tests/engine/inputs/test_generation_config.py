"""A model directory says how it wants to be sampled; a request that says nothing is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.families import copy_with_config
from transformers import GenerationConfig

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.engine.inputs.generation_config import load_default_sampling_params
from vllm_ext.engine.llm import LLM
from vllm_ext.errors import CheckpointError

WISHES = {"temperature": 0.3, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "max_new_tokens": 7}


def read(directory: Path, wishes: dict | None = None, config: dict | None = None) -> SamplingParams:
    if wishes is not None:
        (directory / "generation_config.json").write_text(json.dumps(wishes))
    return load_default_sampling_params(directory, HFConfig(config or {}, directory / "config.json"))


def test_what_the_authors_wish_is_read(tmp_path):
    GenerationConfig(do_sample=True, **WISHES).save_pretrained(tmp_path)

    params = read(tmp_path)

    assert (params.temperature, params.max_tokens) == (0.3, 7)
    for name in set(WISHES) & set(SamplingParams.__struct_fields__):
        assert getattr(params, name) == WISHES[name]


@pytest.mark.parametrize("wishes", [None, {}, {"temperature": None, "eos_token_id": 3, "typical_p": 0.2}])
def test_what_is_not_said_keeps_its_default(tmp_path, wishes):
    assert read(tmp_path, wishes) == SamplingParams()


def test_older_models_have_it_in_their_config(tmp_path):
    config = {"temperature": 0.4}

    assert read(tmp_path, None, config).temperature == 0.4
    assert read(tmp_path, {}, config).temperature == 1.0


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"temperature": "hot"}, "generation_config.json: temperature is 'hot'; it takes a number"),
        ({"max_new_tokens": 0}, "generation_config.json: max_tokens is 0; it takes an integer, at least 1"),
    ],
)
def test_a_wrong_wish_names_the_file(tmp_path, wishes, message):
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, wishes)


def test_requests_without_parameters_are_sampled_as_the_model_wishes(random_llama, tmp_path):
    model = copy_with_config(random_llama, tmp_path, {})
    (model / "tokenizer.json").symlink_to(random_llama / "tokenizer.json")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "max_new_tokens": 5}))
    with LLM(model, platform="cpu") as llm:
        [default] = llm.generate([[1, 2, 3]])
        [greedy] = llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=5))
        [given] = llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=2))
        changed = llm.get_default_sampling_params()
        changed.max_tokens = 99

        assert default.outputs[0].token_ids == greedy.outputs[0].token_ids
        assert len(default.outputs[0].token_ids) == 5
        assert len(given.outputs[0].token_ids) == 2
        assert llm.get_default_sampling_params().max_tokens == 5


def test_an_async_engine_says_what_the_model_wishes(random_llama, tmp_path):
    model = copy_with_config(random_llama, tmp_path, {})
    (model / "tokenizer.json").symlink_to(random_llama / "tokenizer.json")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "max_new_tokens": 5}))

    async def lengths() -> list[int]:
        async with AsyncLLM(model, platform="cpu") as engine:
            changed = engine.get_default_sampling_params()
            changed.max_tokens = 2
            assert engine.get_default_sampling_params() == SamplingParams(temperature=0.0, max_tokens=5)
            last = [[output async for output in engine.generate([1, 2, 3], params)][-1] for params in (None, changed)]
        return [len(output.outputs[0].token_ids) for output in last]

    assert asyncio.run(lengths()) == [5, 2]
