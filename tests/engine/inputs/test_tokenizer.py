"""A model directory's tokenizer and its end-of-sequence tokens."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
import torch
from support.vocabularies import byte_level_tokenizer, write_tokenizer

import vllm_ext
from vllm_ext import TokenizerLike, TokenizerRegistry
from vllm_ext.contracts.vllm_config import HFConfig, ModelConfig
from vllm_ext.engine.inputs.tokenizer import FastTokenizer, load_eos_token_ids, load_tokenizer, tokenizing
from vllm_ext.errors import (
    CheckpointError,
    ContractError,
    InvalidRequest,
    PluginLoadError,
    PluginNotFound,
    TokenizerError,
)

DEMO_MODEL = Path(vllm_ext.__file__).parent / "assets" / "demo_model"


def test_a_missing_tokenizer_says_what_was_looked_for_where_and_what_is_there(tmp_path):
    (tmp_path / "tokenizer.model").touch()

    with pytest.raises(
        TokenizerError, match=r"no tokenizer\.json in '.*', .*tokenizer\.model.*save_pretrained"
    ) as error:
        FastTokenizer.from_pretrained(tmp_path)

    assert str(tmp_path) in str(error.value)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(TokenizerError, match="gone.*no such directory"):
        FastTokenizer.from_pretrained(tmp_path / "gone")


def test_a_damaged_tokenizer_names_its_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0", "model"')

    with pytest.raises(TokenizerError, match=re.escape(str(path))) as error:
        FastTokenizer.from_pretrained(tmp_path)

    assert error.value.__cause__ is not None


def test_prompts_are_neither_cut_nor_padded_whatever_the_file_says(tmp_path):
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    write_tokenizer(tmp_path, tokenizer)

    token_ids = FastTokenizer.from_pretrained(tmp_path).encode("the quick brown fox")

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


class Half:
    @classmethod
    def from_pretrained(cls, path):
        return cls()

    def decode(self, ids, skip_special_tokens=False): ...


class Breaks(FastTokenizer):
    @classmethod
    def from_pretrained(cls, path):
        raise RuntimeError("no merges")


def model(tmp_path, mode):
    return ModelConfig(str(tmp_path), HFConfig({}), torch.float32, 10, str(tmp_path), tokenizer_mode=mode)


@pytest.mark.parametrize("mode", ["auto", "hf"])
def test_what_comes_with_the_engine_reads_tokenizer_json(tmp_path, mode):
    write_tokenizer(tmp_path, byte_level_tokenizer())

    tokenizer = load_tokenizer(model(tmp_path, mode))

    assert isinstance(tokenizer, TokenizerLike)
    ids = tokenizer.encode("the fox")
    assert tokenizer.decode(ids) == "the fox"
    assert tokenizer.vocab_size == byte_level_tokenizer().get_vocab_size()
    assert tokenizer.convert_ids_to_tokens([ids[0], 10**6]) == [byte_level_tokenizer().id_to_token(ids[0]), ""]


def test_an_unknown_mode_is_answered_with_what_exists(tmp_path):
    with pytest.raises(
        PluginNotFound, match=r"no tokenizer mode 'fast' .*engine.tokenizer_mode names; registered: auto, hf"
    ):
        load_tokenizer(model(tmp_path, "fast"))


def test_all_that_a_tokenizer_lacks_is_named(tmp_path):
    TokenizerRegistry.register("half", __name__, "Half")

    with pytest.raises(
        ContractError, match=r"Half of mode 'half' lacks vocab_size, encode, convert_ids_to_tokens; a tok"
    ):
        load_tokenizer(model(tmp_path, "half"))


def test_one_that_fails_is_named_with_the_cause(tmp_path):
    TokenizerRegistry.register("breaks", __name__, "Breaks")

    with pytest.raises(
        PluginLoadError, match=r"Breaks of mode 'breaks' cannot be made for '.*': RuntimeError: no merges"
    ):
        load_tokenizer(model(tmp_path, "breaks"))


def test_other_threads_run_while_a_long_text_is_tokenized_and_it_has_the_same_tokens():
    tokenizer = FastTokenizer.from_pretrained(DEMO_MODEL)
    # Pieces of it are tokenized alone, as a word with the space before it is.
    piece, number = " It was a truth", 20_000
    turns, ended = [], threading.Event()

    def take_turns():
        while not ended.wait(0.0005):
            turns.append(None)

    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        num_before = len(turns)
        token_ids = tokenizer.encode(piece * number)
        num_meanwhile = len(turns) - num_before
        num_before = len(turns)
        text = tokenizer.decode(token_ids)
        num_in_decode = len(turns) - num_before
    finally:
        ended.set()
        thread.join()

    assert token_ids == tokenizer.encode(piece) * number
    assert text == piece * number
    assert num_meanwhile > 5
    assert num_in_decode > 5


def test_half_of_a_surrogate_pair_is_refused_in_a_long_text_too():
    with pytest.raises(InvalidRequest, match="it is not valid Unicode"), tokenizing():
        FastTokenizer.from_pretrained(DEMO_MODEL).encode("a" * 10_000 + "\ud800")
