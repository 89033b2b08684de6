"""The files of sentence-transformers, written by that library, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from support.encoders import BERT, TEXTS, write_encoder

from vllm_ext import LLM
from vllm_ext.config.schema import EngineSettings
from vllm_ext.contracts.vllm_config import PoolerConfig
from vllm_ext.dispatch.hf_config import read_hf_config
from vllm_ext.dispatch.pooler_config import has_modules, make_pooler_config, max_seq_length
from vllm_ext.errors import CheckpointError, UnsupportedModel


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("encoder") / "model"
    directory.mkdir()
    write_encoder(directory, transformers.AutoModel, BERT)
    return directory


@pytest.fixture
def save(encoder, tmp_path):
    """Write a sentence transformer of some modules after the encoder; returns it, and its directory."""

    def save(*modules, **options) -> tuple[SentenceTransformer, Path]:
        transformer = Transformer(str(encoder), **options)
        model = SentenceTransformer(modules=[transformer, *modules], device="cpu").eval()
        model.save(str(tmp_path / "saved"), create_model_card=False)
        return model, tmp_path / "saved"

    return save


def config_of(directory: Path, **settings: str) -> PoolerConfig:
    return make_pooler_config(EngineSettings(**settings), directory, read_hf_config(directory), "embed")


def same(directory: Path, model: SentenceTransformer) -> bool:
    expected = torch.from_numpy(model.encode(TEXTS))
    with LLM(directory, platform="cpu") as llm:
        outputs = llm.embed(TEXTS)
    return torch.allclose(torch.tensor([output.outputs.embedding for output in outputs]), expected, atol=2e-5)


@pytest.mark.parametrize(("mode", "expected"), [("mean", "MEAN"), ("cls", "CLS"), ("lasttoken", "LAST")])
def test_the_way_of_pooling_is_read(save, mode, expected):
    model, directory = save(Pooling(64, pooling_mode=mode), Normalize())

    assert config_of(directory).pooling_type == expected
    assert same(directory, model)


def test_without_the_module_for_it_embeddings_are_not_brought_to_length_one(save):
    model, directory = save(Pooling(64, pooling_mode="mean"))

    assert not config_of(directory).use_activation
    assert same(directory, model)


def test_projections_come_after_pooling(save):
    torch.manual_seed(0)
    modules = [Dense(64, 32), Dense(32, 24, bias=False, activation_function=torch.nn.Identity())]
    model, directory = save(Pooling(64, pooling_mode="mean"), *modules, Normalize())

    config = config_of(directory)

    assert config.embedding_size == 24
    assert len(config.dense) == 2
    assert same(directory, model)


def test_the_length_that_texts_are_cut_to_is_the_limit_unless_the_user_says_otherwise(save):
    _, directory = save(Pooling(64), max_seq_length=20)

    assert max_seq_length(directory) == 20
    with LLM(directory, platform="cpu") as llm:
        assert len(llm.embed("the quick brown fox " * 9, truncate_prompt_tokens=-1)[0].prompt_token_ids) == 20
    with LLM(directory, platform="cpu", max_model_len=30) as llm:
        assert len(llm.embed("the quick brown fox " * 9, truncate_prompt_tokens=-1)[0].prompt_token_ids) == 30


def test_a_directory_without_the_files_pools_as_models_of_its_kind_do(encoder):
    assert not has_modules(encoder)
    assert max_seq_length(encoder) is None
    assert config_of(encoder) == PoolerConfig("CLS", embedding_size=64)
    assert config_of(encoder, pooling_type="MEAN").pooling_type == "MEAN"


def test_a_way_of_pooling_that_is_not_supported_says_so_and_can_be_overridden(save):
    _, directory = save(Pooling(64, pooling_mode="max"))

    with pytest.raises(UnsupportedModel, match=r"asks for the pooling \['max'\]; supported is one of: cls, lasttoken"):
        config_of(directory)
    assert config_of(directory, pooling_type="MEAN").pooling_type == "MEAN"


def test_the_older_form_of_the_file_is_read(save):
    _, directory = save(Pooling(64, pooling_mode="mean"))
    old = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(old))

    assert config_of(directory).pooling_type == "CLS"


def test_texts_are_put_into_lower_case_where_the_files_say_so(save):
    _, directory = save(Pooling(64))
    path = directory / "sentence_bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": True}))

    with LLM(directory, platform="cpu") as llm:
        upper, lower = llm.embed(["The QUICK fox", "the quick fox"])

    assert upper.prompt_token_ids == lower.prompt_token_ids


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", CheckpointError, "is not a list of modules of sentence-transformers"),
        ("[1]", CheckpointError, "is not a list of modules of sentence-transformers"),
        ("[]", CheckpointError, "is an empty list"),
        ('[{"type": "a.Transformer", "path": "../elsewhere"}]', CheckpointError, "is not in the model directory"),
        ('[{"type": "a.CLIPModel", "path": ""}]', UnsupportedModel, "has the modules CLIPModel; supported are"),
        ('[{"type": "Transformer", "path": ""}]', UnsupportedModel, "has the modules Transformer; supported are"),
    ],
)
def test_a_damaged_or_foreign_list_of_modules_is_refused(save, content, error, message):
    _, directory = save(Pooling(64))
    (directory / "modules.json").write_text(content)

    with pytest.raises(error) as caught:
        config_of(directory)

    assert message in str(caught.value)


def test_a_projection_with_an_unknown_activation_is_refused(save):
    _, directory = save(Pooling(64), Dense(64, 8))
    path = directory / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"activation_function": "os.system"}))

    with pytest.raises(UnsupportedModel, match="activation_function 'system' is not supported"):
        LLM(directory, platform="cpu")


def test_a_projection_without_weights_is_refused(save):
    _, directory = save(Pooling(64), Dense(64, 8))
    (directory / "2_Dense" / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match="cannot be read as the weights of a projection"):
        LLM(directory, platform="cpu")
