"""A model directory's tokenizer and its end-of-sequence tokens."""

from __future__ import annotations

import json
import re

import pytest
from support.vocabularies import byte_level_tokenizer, write_tokenizer

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.engine.tokenizer import load_eos_token_ids, load_tokenizer
from vllm_ext.errors import CheckpointError, TokenizerError


def test_a_missing_tokenizer_says_what_was_looked_for_where_and_what_is_there(tmp_path):
    (tmp_path / "tokenizer.model").touch()

    with pytest.raises(
        TokenizerError, match=r"no tokenizer\.json in '.*', .*tokenizer\.model.*save_pretrained"
    ) as error:
        load_tokenizer(tmp_path)

    assert str(tmp_path) in str(error.value)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(TokenizerError, match="gone.*no such directory"):
        load_tokenizer(tmp_path / "gone")


def test_a_damaged_tokenizer_names_its_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0", "model"')

    with pytest.raises(TokenizerError, match=re.escape(str(path))) as error:
        load_tokenizer(tmp_path)

    assert error.value.__cause__ is not None


def test_prompts_are_neither_cut_nor_padded_whatever_the_file_says(tmp_path):
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    write_tokenizer(tmp_path, tokenizer)

    token_ids = load_tokenizer(tmp_path).encode("the quick brown fox").ids

    assert token_ids == byte_level_tokenizer().encode("the quick brown fox").ids


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 2}, {7, 8}),  # the generation config comes first
        ({"eos_token_id": 7}, {}, {7}),
        ({"temperature": 0.5}, {"eos_token_id": 2}, {2}),
        (None, {"eos_token_id": [2, 3]}, {2, 3}),
        (None, {"eos_token_id": None}, set()),
    ],
)
def test_end_of_sequence_tokens_are_those_that_the_model_directory_names(tmp_path, generation_config, config, expected):
    if generation_config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation_config))

    assert load_eos_token_ids(tmp_path, HFConfig(config)) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [true]}'])
def test_a_damaged_generation_config_names_its_file(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)

    with pytest.raises(CheckpointError, match="generation_config.json"):
        load_eos_token_ids(tmp_path, HFConfig({}))
