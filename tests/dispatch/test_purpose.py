"""What a model is for, by settings, name and files."""

from __future__ import annotations

import pytest

from vllm_ext.config.schema import EngineSettings
from vllm_ext.dispatch.purpose import resolve_purpose
from vllm_ext.errors import ConfigError


def purpose(*architectures: str, has_modules: bool = False, **settings: str) -> tuple[str, str]:
    return tuple(resolve_purpose(EngineSettings(**settings), architectures, has_modules=has_modules))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", ("generate", "none")),
        ("GPT2LMHeadModel", ("generate", "none")),
        ("SomethingNew", ("generate", "none")),
        ("BertModel", ("pooling", "embed")),
        ("LlamaModel", ("pooling", "embed")),
        ("RobertaForMaskedLM", ("pooling", "embed")),
        ("AcmeEmbeddingModel", ("pooling", "embed")),
        ("BertForSequenceClassification", ("pooling", "classify")),
    ],
)
def test_the_name_tells_it(architecture, expected):
    assert purpose(architecture) == expected


def test_a_model_without_a_name_generates():
    assert purpose() == ("generate", "none")


def test_files_of_sentence_transformers_make_any_model_one_that_embeds():
    assert purpose("Qwen3ForCausalLM", has_modules=True) == ("pooling", "embed")


def test_the_users_runner_is_what_counts():
    assert purpose("Qwen3ForCausalLM", has_modules=True, runner="generate") == ("generate", "none")
    assert purpose("LlamaForCausalLM", runner="pooling") == ("pooling", "embed")


def test_whoever_converts_a_model_wants_it_to_pool():
    assert purpose("LlamaForCausalLM", convert="classify") == ("pooling", "classify")
    assert purpose("BertModel", convert="none") == ("pooling", "none")


def test_a_model_that_is_to_generate_cannot_be_converted():
    with pytest.raises(ConfigError, match="engine.convert is 'embed'.*and engine.runner is 'generate'"):
        purpose("LlamaForCausalLM", runner="generate", convert="embed")
