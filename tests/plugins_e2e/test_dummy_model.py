"""A documented general plugin adds a model architecture, on any platform."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.reference import assert_equal_tokens, greedy_reference

from vllm_ext import LLM, SamplingParams
from vllm_ext.errors import UnsupportedModel

NUM_TOKENS = 12
PROMPTS = [[5, 17, 300, 4], [410, 2], [250, 8, 8, 41]]


@pytest.fixture
def dummy_checkpoint(random_llama, tmp_path) -> Path:
    """The random Llama's weights under the plugin's architecture."""
    directory = tmp_path / "dummy-llama"
    shutil.copytree(random_llama, directory)
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["MyDummyLlamaForCausalLM"]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def generate(llm: LLM) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("platform", ["cpu", "dummy"])
def test_the_plugin_s_model_runs_with_its_own_logits(plugins, random_llama, dummy_checkpoint, platform):
    plugins.project("vllm_ext_dummy_model")
    plugins.project("vllm_ext_dummy_platform")

    with LLM(model=dummy_checkpoint, platform=platform, dtype="float32") as llm:
        token_ids = generate(llm)

    from vllm_ext_dummy_model.my_model import BONUS, FAVOURITE_TOKEN

    references = greedy_reference(random_llama, PROMPTS, NUM_TOKENS, logit_bias={FAVOURITE_TOKEN: BONUS})
    plain = greedy_reference(random_llama, PROMPTS, NUM_TOKENS)
    assert [r.token_ids for r in references] != [r.token_ids for r in plain], "the bonus makes a difference"
    assert_equal_tokens(token_ids, references)


@pytest.mark.parametrize("platform, expected", [("dummy", "MyDummyPlatform"), ("cpu", "CpuPlatform")])
def test_a_general_plugin_sees_the_platform_that_was_bound(plugins, dummy_checkpoint, platform, expected):
    plugins.project("vllm_ext_dummy_model")
    plugins.project("vllm_ext_dummy_platform")

    LLM(model=dummy_checkpoint, platform=platform, dtype="float32").close()

    from vllm_ext_dummy_model import platforms_seen

    assert platforms_seen == [expected]


def test_without_the_plugin_the_error_names_the_architecture_and_the_supported_ones(dummy_checkpoint):
    with pytest.raises(UnsupportedModel) as caught:
        LLM(model=dummy_checkpoint, platform="cpu", dtype="float32")

    assert "'MyDummyLlamaForCausalLM'" in str(caught.value)
    assert "LlamaForCausalLM" in str(caught.value).partition("Supported:")[2]
