"""BERT and its relatives, against transformers' own models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from support.encoders import BERT, ROBERTA, TEXTS, XLM_ROBERTA, encoded, write_encoder

from vllm_ext import LLM
from vllm_ext.errors import CheckpointError, ConfigError, InvalidRequest, UnsupportedModel

FAMILIES = {"bert": BERT, "roberta": ROBERTA, "xlm-roberta": XLM_ROBERTA}
BACKENDS = ["CPU_ATTN", "SDPA", "REFERENCE"]


def kinds(config: dict, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without kinds of tokens for a model that knows one only."""
    return inputs if config["type_vocab_size"] > 1 else inputs | {"token_type_ids": inputs["token_type_ids"] * 0}


def states_of(model, config: dict, text: str) -> torch.Tensor:
    """``[tokens, hidden]`` of transformers' encoder."""
    body = getattr(model, model.base_model_prefix, model)
    with torch.inference_mode():
        return body(**kinds(config, encoded(text))).last_hidden_state[0]


@pytest.fixture(params=FAMILIES)
def family(request) -> dict:
    return FAMILIES[request.param]


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM"])
def test_states_of_tokens_equal_those_of_transformers(tmp_path, family, auto):
    model = write_encoder(tmp_path, getattr(transformers, auto), family)

    with LLM(tmp_path, platform="cpu") as llm:
        outputs = llm.encode(TEXTS, pooling_task="token_embed")
        alone = [llm.encode(text, pooling_task="token_embed")[0] for text in TEXTS]

    for text, output, single in zip(TEXTS, outputs, alone, strict=True):
        expected = torch.nn.functional.normalize(states_of(model, family, text), dim=-1)
        torch.testing.assert_close(output.outputs.data, expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(single.outputs.data, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_attention_backend_computes_the_same(tmp_path, backend):
    model = write_encoder(tmp_path, transformers.AutoModel, BERT)

    with LLM(tmp_path, platform="cpu", overrides={"attention.backend": backend}) as llm:
        outputs = llm.embed(TEXTS)
        chosen = {layer.attn_backend.get_name() for layer in llm.apply_model(list_layers)[0]}

    assert chosen == {backend}
    for text, output in zip(TEXTS, outputs, strict=True):
        expected = torch.nn.functional.normalize(states_of(model, BERT, text)[0], dim=0)
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), expected, atol=2e-5, rtol=0)


def list_layers(model: torch.nn.Module) -> list:
    return [module for module in model.modules() if hasattr(module, "attn_backend")]


def test_half_precision_is_near(tmp_path):
    model = write_encoder(tmp_path, transformers.AutoModel, BERT)

    with LLM(tmp_path, platform="cpu", dtype="bfloat16") as llm:
        outputs = llm.embed(TEXTS)

    for text, output in zip(TEXTS, outputs, strict=True):
        cosine = torch.cosine_similarity(torch.tensor(output.outputs.embedding), states_of(model, BERT, text)[0], dim=0)
        assert cosine > 0.995


@pytest.mark.parametrize("pooling_type", ["MEAN", "LAST", "CLS"])
def test_the_settings_choose_how_states_are_pooled(tmp_path, pooling_type):
    model = write_encoder(tmp_path, transformers.AutoModel, ROBERTA)
    pool = {"MEAN": lambda s: s.mean(dim=0), "LAST": lambda s: s[-1], "CLS": lambda s: s[0]}[pooling_type]

    with LLM(tmp_path, platform="cpu", pooling_type=pooling_type) as llm:
        outputs = llm.embed(TEXTS)

    for text, output in zip(TEXTS, outputs, strict=True):
        expected = torch.nn.functional.normalize(pool(states_of(model, ROBERTA, text)), dim=0)
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), expected, atol=2e-5, rtol=0)


def test_a_model_for_regression_gives_its_scores_bare(tmp_path):
    config = {**BERT, "num_labels": 1, "problem_type": "regression"}
    model = write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, config)

    with LLM(tmp_path, platform="cpu") as llm:
        outputs = llm.classify(TEXTS)

    for text, output in zip(TEXTS, outputs, strict=True):
        with torch.inference_mode():
            expected = model(**encoded(text)).logits[0]
        torch.testing.assert_close(torch.tensor(output.outputs.probs), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_labels", [2, 5])
def test_classes_have_the_probabilities_of_transformers(tmp_path, family, num_labels):
    config = {**family, "num_labels": num_labels}
    model = write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, config)

    with LLM(tmp_path, platform="cpu") as llm:
        outputs = llm.classify(TEXTS)

    for text, output in zip(TEXTS, outputs, strict=True):
        with torch.inference_mode():
            expected = model(**kinds(family, encoded(text))).logits[0].softmax(dim=-1)
        torch.testing.assert_close(torch.tensor(output.outputs.probs), expected, atol=2e-5, rtol=0)


def test_labels_that_do_not_exclude_one_another_are_judged_each_by_itself(tmp_path):
    config = {**BERT, "num_labels": 3, "problem_type": "multi_label_classification"}
    model = write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, config)

    with LLM(tmp_path, platform="cpu") as llm:
        (output,) = llm.classify(TEXTS[0])

    with torch.inference_mode():
        expected = model(**encoded(TEXTS[0])).logits[0].sigmoid()
    torch.testing.assert_close(torch.tensor(output.outputs.probs), expected, atol=2e-5, rtol=0)


class TestPairs:
    """A cross-encoder reads two texts at once."""

    @pytest.fixture
    def cross_encoder(self, tmp_path, family):
        model = write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, {**family, "num_labels": 1})
        return tmp_path, model

    def expected(self, model, family: dict, pairs: list[tuple[str, str]]) -> list[float]:
        with torch.inference_mode():
            return [float(model(**kinds(family, encoded(*pair))).logits[0, 0].sigmoid()) for pair in pairs]

    def test_scores_equal_those_of_transformers(self, cross_encoder, family):
        directory, model = cross_encoder
        pairs = [(TEXTS[0], text) for text in TEXTS[1:]]

        with LLM(directory, platform="cpu") as llm:
            outputs = llm.score(TEXTS[0], TEXTS[1:])

        assert [output.outputs.score for output in outputs] == pytest.approx(
            self.expected(model, family, pairs), abs=2e-5
        )

    def test_a_pair_that_is_too_long_is_cut_as_transformers_cuts_it(self, cross_encoder, family):
        directory, _model = cross_encoder
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
        pair = ("the quick brown fox " * 4, "the lazy dog again")
        ids = tokenizer(*pair, truncation="longest_first", max_length=20)["input_ids"]

        with LLM(directory, platform="cpu") as llm:
            (output,) = llm.score(*pair, truncate_prompt_tokens=20)

        assert output.prompt_token_ids == ids
        assert len(ids) == 20

    @pytest.mark.parametrize("limit", [1, 2])
    def test_a_limit_below_what_goes_around_a_pair_is_refused(self, cross_encoder, limit):
        with (
            LLM(cross_encoder[0], platform="cpu") as llm,
            pytest.raises(InvalidRequest, match=f"is {limit}, and the tokenizer puts 3 tokens around every pair"),
        ):
            llm.score("the fox", "the dog", truncate_prompt_tokens=limit)

    @pytest.mark.parametrize("pair", [("\ud800", "x"), ("x", "\ud800")])
    def test_a_text_that_is_not_unicode_is_refused(self, cross_encoder, pair):
        with (
            LLM(cross_encoder[0], platform="cpu") as llm,
            pytest.raises(InvalidRequest, match="it is not valid Unicode"),
        ):
            llm.score(*pair)

    def test_a_pair_that_is_too_long_is_refused_and_others_are_served(self, cross_encoder, family):
        directory, model = cross_encoder

        with LLM(directory, platform="cpu") as llm:
            with pytest.raises(InvalidRequest, match="prompt 1: the prompt has .* tokens, and max_model_len is 6"):
                llm.score(["a", "the fox jumps " * 30], "the lazy dog")
            (output,) = llm.score(TEXTS[0], TEXTS[1])

        assert output.outputs.score == pytest.approx(self.expected(model, family, [(TEXTS[0], TEXTS[1])])[0], abs=2e-5)

    @pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
    def test_a_model_that_wants_bare_scores_gets_them(self, cross_encoder, family, key):
        directory, model = cross_encoder
        name = "torch.nn.modules.linear.Identity"
        change_config(directory, {key: {"activation_fn": name} if key == "sentence_transformers" else name})

        with LLM(directory, platform="cpu") as llm:
            (output,) = llm.score(TEXTS[0], TEXTS[1])

        with torch.inference_mode():
            expected = float(model(**kinds(family, encoded(TEXTS[0], TEXTS[1]))).logits[0, 0])
        assert output.outputs.score == pytest.approx(expected, abs=2e-5)


@pytest.mark.slow
def test_two_ranks_give_pairs_the_scores_that_one_gives(tmp_path):
    model = write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, {**BERT, "num_labels": 1})

    with LLM(tmp_path, platform="cpu", executor="multiproc", tensor_parallel_size=2) as llm:
        outputs = llm.score(TEXTS[0], TEXTS[1:])

    for text, output in zip(TEXTS[1:], outputs, strict=True):
        with torch.inference_mode():
            expected = float(model(**encoded(TEXTS[0], text)).logits[0, 0].sigmoid())
        assert output.outputs.score == pytest.approx(expected, abs=2e-5)


def test_two_ranks_give_the_classes_that_one_gives(tmp_path):
    config = {**ROBERTA, "num_labels": 3}
    model = write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, config)

    with LLM(tmp_path, platform="cpu", executor="multiproc", tensor_parallel_size=2) as llm:
        outputs = llm.classify(TEXTS)

    for text, output in zip(TEXTS, outputs, strict=True):
        with torch.inference_mode():
            expected = model(**kinds(ROBERTA, encoded(text))).logits[0].softmax(dim=-1)
        torch.testing.assert_close(torch.tensor(output.outputs.probs), expected, atol=2e-5, rtol=0)


def test_ranks_that_do_not_divide_an_encoder_are_refused(tmp_path):
    write_encoder(tmp_path, transformers.AutoModel, {**BERT, "num_attention_heads": 1})

    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        LLM(tmp_path, platform="cpu", executor="multiproc", tensor_parallel_size=2)


def change_config(directory: Path, changes: dict) -> None:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden_act": "mystery"}, UnsupportedModel, "hidden_act 'mystery' is not supported; supported: gelu"),
        ({"position_embedding_type": "relative_key"}, UnsupportedModel, "'relative_key' is not supported"),
        ({"num_attention_heads": 5}, CheckpointError, "hidden_size 64 is no multiple of 5 heads"),
        ({"hidden_act": ["gelu"]}, UnsupportedModel, "hidden_act ['gelu'] is not supported"),
        ({"layer_norm_eps": "1e-5"}, CheckpointError, "layer_norm_eps is '1e-5'; it takes a number from 0 on"),
        ({"type_vocab_size": 0}, CheckpointError, "type_vocab_size is 0; it takes a whole number from 1 on"),
        ({"num_hidden_layers": 4}, CheckpointError, "does not hold all tensors of the model; missing:"),
        ({"intermediate_size": 95}, CheckpointError, "the model has [95] there"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(tmp_path, changes, error, message):
    write_encoder(tmp_path, transformers.AutoModel, BERT)
    change_config(tmp_path, changes)

    with pytest.raises(error) as caught:
        LLM(tmp_path, platform="cpu")

    assert message in str(caught.value)


@pytest.mark.parametrize("pad_token_id", ["one", -1, 65, True])
def test_a_padding_token_that_leaves_no_positions_is_refused(tmp_path, pad_token_id):
    write_encoder(tmp_path, transformers.AutoModel, ROBERTA)
    change_config(tmp_path, {"pad_token_id": pad_token_id})

    with pytest.raises(CheckpointError, match="it takes a number from 0 to 64, of max_position_embeddings 66"):
        LLM(tmp_path, platform="cpu")


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_other_activations_are_those_of_transformers(tmp_path, activation):
    config = {**BERT, "hidden_act": activation}
    model = write_encoder(tmp_path, transformers.AutoModel, config)

    with LLM(tmp_path, platform="cpu") as llm:
        (output,) = llm.encode(TEXTS[0], pooling_task="token_embed")

    expected = torch.nn.functional.normalize(states_of(model, config, TEXTS[0]), dim=-1)
    torch.testing.assert_close(output.outputs.data, expected, atol=2e-5, rtol=0)


def test_a_prompt_takes_all_positions_that_come_after_the_padding_tokens(tmp_path):
    model = write_encoder(tmp_path, transformers.AutoModel, ROBERTA)
    token_ids = [5] * 64

    with LLM(tmp_path, platform="cpu") as llm:
        (output,) = llm.encode([token_ids], pooling_task="token_embed")
        with pytest.raises(InvalidRequest, match="the prompt has 65 tokens, and max_model_len is 64"):
            llm.embed([[*token_ids, 5]])

    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model(torch.tensor([token_ids])).last_hidden_state[0], dim=-1)
    torch.testing.assert_close(output.outputs.data, expected, atol=2e-5, rtol=0)


def test_old_names_of_norms_are_known(tmp_path):
    from safetensors.torch import load_file, save_file

    model = write_encoder(tmp_path, transformers.AutoModel, BERT)
    path = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(path).items()
    }
    save_file({f"bert.{name}": tensor for name, tensor in old.items()}, path)

    with LLM(tmp_path, platform="cpu") as llm:
        (output,) = llm.embed(TEXTS[0])

    expected = torch.nn.functional.normalize(states_of(model, BERT, TEXTS[0])[0], dim=0)
    torch.testing.assert_close(torch.tensor(output.outputs.embedding), expected, atol=2e-5, rtol=0)


def test_an_encoder_cannot_be_made_to_generate(tmp_path):
    write_encoder(tmp_path, transformers.AutoModel, BERT)

    with pytest.raises(ConfigError, match="'BertModel' is a pooling model, and engine.runner is 'generate'"):
        LLM(tmp_path, platform="cpu", runner="generate")
