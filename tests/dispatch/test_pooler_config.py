"""The files of sentence-transformers, written by that library, and what is wrong with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support import sentence_models as sbert
from support.encoders import BERT, ROBERTA, TEXTS, encoded, write_encoder
from support.families import NATIVE, write_model

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
    """Write a sentence transformer of some modules after a model; returns it, and its directory."""

    def save(*modules, model: Path = encoder, **options) -> tuple[sbert.SentenceTransformer, Path]:
        transformer = sbert.Transformer(str(model), **options)
        model = sbert.SentenceTransformer(modules=[transformer, *modules], device="cpu").eval()
        model.save(str(tmp_path / "saved"), create_model_card=False)
        return model, tmp_path / "saved"

    return save


def config_of(directory: Path, **settings: str) -> PoolerConfig:
    return make_pooler_config(EngineSettings(**settings), directory, read_hf_config(directory), "embed")


def same(directory: Path, model: sbert.SentenceTransformer, texts: list[str] = TEXTS, **options) -> bool:
    expected = torch.from_numpy(model.encode(texts))
    with LLM(directory, platform="cpu") as llm:
        outputs = llm.embed(texts, **options)
    return torch.allclose(torch.tensor([output.outputs.embedding for output in outputs]), expected, atol=2e-5)


@pytest.mark.parametrize(("mode", "expected"), [("mean", "MEAN"), ("cls", "CLS"), ("lasttoken", "LAST")])
def test_the_way_of_pooling_is_read(save, mode, expected):
    model, directory = save(sbert.Pooling(64, pooling_mode=mode), sbert.Normalize())

    assert config_of(directory).pooling_type == expected
    assert same(directory, model)


def test_without_the_module_for_it_embeddings_are_not_brought_to_length_one(save):
    model, directory = save(sbert.Pooling(64, pooling_mode="mean"))

    assert not config_of(directory).use_activation
    assert same(directory, model)


def test_projections_come_after_pooling(save):
    torch.manual_seed(0)
    modules = [sbert.Dense(64, 32), sbert.Dense(32, 24, bias=False, activation_function=torch.nn.Identity())]
    model, directory = save(sbert.Pooling(64, pooling_mode="mean"), *modules, sbert.Normalize())

    config = config_of(directory)

    assert config.embedding_size == 24
    assert len(config.dense) == 2
    assert same(directory, model)


def test_the_length_that_texts_are_cut_to_is_the_limit_unless_the_user_says_otherwise(save):
    _, directory = save(sbert.Pooling(64), max_seq_length=20)

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
    _, directory = save(sbert.Pooling(64, pooling_mode="max"))

    with pytest.raises(UnsupportedModel, match=r"asks for the pooling \['max'\]; supported is one of: cls, lasttoken"):
        config_of(directory)
    assert config_of(directory, pooling_type="MEAN").pooling_type == "MEAN"


def test_the_older_form_of_the_file_is_read(save):
    _, directory = save(sbert.Pooling(64, pooling_mode="mean"))
    old = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(old))

    assert config_of(directory).pooling_type == "CLS"


@pytest.mark.parametrize("length", [20, 3])
def test_texts_are_cut_as_the_library_cuts_them(save, length):
    model, directory = save(sbert.Pooling(64, pooling_mode="mean"), max_seq_length=length)

    assert same(directory, model, [text * 9 for text in TEXTS], truncate_prompt_tokens=-1)


def test_a_model_whose_positions_begin_later_gives_what_the_library_gives(save, tmp_path):
    (tmp_path / "roberta").mkdir()
    write_encoder(tmp_path / "roberta", transformers.AutoModel, ROBERTA)
    # As many as there are positions after the padding token's, and the longest text has more.
    options = {"model": tmp_path / "roberta", "max_seq_length": 64}
    model, directory = save(sbert.Pooling(64, pooling_mode="mean"), sbert.Normalize(), **options)

    assert same(directory, model, [*TEXTS, "the quick brown fox " * 30], truncate_prompt_tokens=-1)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    # Without a head, as such models are written; loading one with it would be reported.
    directory = write_model(tmp_path_factory.mktemp("decoder") / "model", NATIVE["qwen3"])
    transformers.AutoModel.from_pretrained(directory).save_pretrained(directory)
    return directory


class TestDecoder:
    """A decoder, whose tokenizer tells upper from lower case."""

    @pytest.fixture
    def texts(self) -> list[str]:
        return [text for text in TEXTS if text]

    def test_it_gives_what_the_library_gives(self, save, decoder, texts):
        model, directory = save(sbert.Pooling(64, pooling_mode="lasttoken"), sbert.Normalize(), model=decoder)

        assert same(directory, model, texts)

    @pytest.mark.parametrize("lower", [True, False])
    def test_texts_are_put_into_lower_case_where_the_files_say_so(self, save, decoder, lower):
        _, directory = save(sbert.Pooling(64), model=decoder)
        path = directory / "sentence_bert_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": lower}))
        # The library reads the file as well.
        model = sbert.SentenceTransformer(str(directory), device="cpu")

        with LLM(directory, platform="cpu") as llm:
            upper, small = llm.embed(["The QUICK fox", "the quick fox"])

        assert (upper.prompt_token_ids == small.prompt_token_ids) is lower
        assert same(directory, model, ["The QUICK fox", "the quick fox"])


def set_prompts(directory: Path, name: object, prompts: object) -> None:
    path = directory / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts, "default_prompt_name": name}))


def test_the_default_prompt_of_the_files_comes_before_each_text(save):
    _, directory = save(sbert.Pooling(64, pooling_mode="mean"), sbert.Normalize())
    set_prompts(directory, "query", {"query": "search for: ", "document": "text: "})
    model = sbert.SentenceTransformer(str(directory), device="cpu")

    assert config_of(directory).prompt == "search for: "
    assert same(directory, model)
    with LLM(directory, platform="cpu") as llm:
        (of_token_ids,) = llm.embed([{"prompt_token_ids": [5, 6]}])
    assert of_token_ids.prompt_token_ids == [5, 6]


def test_a_prompt_that_is_not_the_default_one_is_left_to_the_caller(save):
    _, directory = save(sbert.Pooling(64))
    set_prompts(directory, None, {"query": "search for: "})

    assert config_of(directory).prompt == ""


@pytest.mark.parametrize(("name", "prompts"), [("no", {"query": "q: "}), ("query", ["q"]), (["query"], {"query": "q"})])
def test_a_default_prompt_that_is_none_of_the_prompts_is_refused(save, name, prompts):
    _, directory = save(sbert.Pooling(64))
    set_prompts(directory, name, prompts)

    with pytest.raises(CheckpointError, match=r"config_sentence_transformers\.json: default_prompt_name is"):
        config_of(directory)


def test_a_default_prompt_that_is_not_pooled_is_refused(save):
    _, directory = save(sbert.Pooling(64, include_prompt=False))
    set_prompts(directory, "query", {"query": "q: "})

    with pytest.raises(UnsupportedModel, match="leaves the prompt out"):
        config_of(directory)


class TestCrossEncoder:
    """A model that reads two texts at once, with a list of modules that has no pooling."""

    @pytest.fixture
    def write(self, tmp_path):
        def write(num_labels: int, **options) -> tuple[sbert.CrossEncoder, Path]:
            (tmp_path / "model").mkdir()
            auto = transformers.AutoModelForSequenceClassification
            write_encoder(tmp_path / "model", auto, {**BERT, "num_labels": num_labels})
            model = sbert.CrossEncoder(str(tmp_path / "model"), device="cpu", **options)
            model.save_pretrained(str(tmp_path / "cross"), create_model_card=False)
            return model, tmp_path / "cross"

        return write

    @pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid(), None])
    def test_its_scores_are_those_of_the_library(self, write, activation):
        model, directory = write(1, activation_fn=activation)
        expected = model.predict([(TEXTS[0], text) for text in TEXTS[1:]])

        with LLM(directory, platform="cpu") as llm:
            outputs = llm.score(TEXTS[0], TEXTS[1:])

        assert [output.outputs.score for output in outputs] == pytest.approx(expected.tolist(), abs=2e-5)

    def test_its_activation_goes_before_that_of_the_number_of_classes(self, write, tmp_path):
        _, directory = write(3, activation_fn=torch.nn.Sigmoid())
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()

        with LLM(directory, platform="cpu") as llm:
            (output,) = llm.classify(TEXTS[0])

        with torch.inference_mode():
            expected = model(**encoded(TEXTS[0])).logits[0].sigmoid()
        assert output.outputs.probs == pytest.approx(expected.tolist(), abs=2e-5)

    def test_its_tokenizers_limit_is_the_limit(self, write):
        _, directory = write(1, max_length=20)

        with LLM(directory, platform="cpu") as llm:
            (output,) = llm.score("the quick brown fox " * 9, "the lazy dog", truncate_prompt_tokens=-1)

        assert len(output.prompt_token_ids) == 20

    def test_modules_after_the_model_are_refused(self, write):
        _, directory = write(1)
        path = directory / "modules.json"
        path.write_text(json.dumps([*json.loads(path.read_text()), {"type": "a.LogitScore", "path": "1_LogitScore"}]))

        with pytest.raises(UnsupportedModel, match="has the modules LogitScore, Transformer; of a cross-encoder, "):
            LLM(directory, platform="cpu")

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"sentence_transformers": "x"}, CheckpointError, "sentence_transformers is 'x'; it takes an object"),
            (
                {"sentence_transformers": {"activation_fn": "os.system"}},
                UnsupportedModel,
                "activation function 'os.system', which is not supported; supported: Identity, Sigmoid, Softmax",
            ),
            ({"sbert_ce_default_activation_function": 5}, UnsupportedModel, "activation function '5'"),
        ],
    )
    def test_an_activation_that_is_none_is_refused(self, tmp_path, changes, error, message):
        write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, {**BERT, "num_labels": 1})
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        with pytest.raises(error) as caught:
            LLM(tmp_path, platform="cpu")

        assert message in str(caught.value)

    def test_the_module_of_an_activation_is_not_imported(self, tmp_path):
        write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, {**BERT, "num_labels": 1})
        path = tmp_path / "config.json"
        named = {"sentence_transformers": {"activation_fn": "antigravity.Identity"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | named))

        with LLM(tmp_path, platform="cpu") as llm:
            assert len(llm.score("x", "y")) == 1

        assert "antigravity" not in sys.modules


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
    _, directory = save(sbert.Pooling(64))
    (directory / "modules.json").write_text(content)

    with pytest.raises(error) as caught:
        config_of(directory)

    assert message in str(caught.value)


def test_a_projection_with_an_unknown_activation_is_refused(save):
    _, directory = save(sbert.Pooling(64), sbert.Dense(64, 8))
    path = directory / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"activation_function": "os.system"}))

    with pytest.raises(UnsupportedModel, match="activation_function 'system' is not supported"):
        LLM(directory, platform="cpu")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"linear.weight": (8, 32)}, "has a weight of shape [8, 32]; what comes before it gives 64 numbers"),
        ({"linear.weight": (64,)}, "has a weight of shape [64]; what comes before it gives 64 numbers"),
        ({"linear.weight": (8, 64), "linear.bias": (9,)}, "of shape [8, 64], and a bias of shape [9]; what comes"),
        ({"linear.weight": (9, 64)}, "config.json says out_features 8, and the weights have 9"),
        ({"weight": (8, 64)}, "cannot be read as the weights of a projection: KeyError('linear.weight')"),
    ],
)
def test_a_projection_that_does_not_fit_is_refused(save, tensors, message):
    _, directory = save(sbert.Pooling(64), sbert.Dense(64, 8))
    path = directory / "2_Dense" / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)

    with pytest.raises(CheckpointError) as caught:
        LLM(directory, platform="cpu")

    assert message in str(caught.value)


def test_projections_that_do_not_fit_each_other_are_refused(save):
    _, directory = save(sbert.Pooling(64), sbert.Dense(64, 32), sbert.Dense(32, 8))
    save_file({"linear.weight": torch.zeros(8, 33)}, directory / "3_Dense" / "model.safetensors")

    with pytest.raises(CheckpointError, match="3_Dense.* what comes before it gives 32 numbers"):
        LLM(directory, platform="cpu")


@pytest.mark.parametrize(
    ("file", "changes", "error", "message"),
    [
        ("2_Dense/config.json", {"out_features": "8"}, CheckpointError, "out_features is '8'; it takes a whole number"),
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, UnsupportedModel, "asks for the pooling [['mean']]"),
        ("1_Pooling/config.json", {"pooling_mode": 5}, UnsupportedModel, "asks for the pooling 5; supported is one of"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, UnsupportedModel, "the pooling ['cls', 'mean']"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, CheckpointError, "max_seq_length is 0; it takes a number"),
        ("sentence_bert_config.json", {"max_seq_length": "9"}, CheckpointError, "max_seq_length is '9'; it takes"),
    ],
)
def test_a_wrong_value_in_a_file_is_refused_with_the_file(save, file, changes, error, message):
    _, directory = save(sbert.Pooling(64), sbert.Dense(64, 8))
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    with pytest.raises(error) as caught:
        LLM(directory, platform="cpu")

    assert message in str(caught.value)
    assert file in str(caught.value)


def test_a_projection_without_weights_is_refused(save):
    _, directory = save(sbert.Pooling(64), sbert.Dense(64, 8))
    (directory / "2_Dense" / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match="cannot be read as the weights of a projection"):
        LLM(directory, platform="cpu")
