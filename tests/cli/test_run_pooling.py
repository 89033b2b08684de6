"""``vllm-ext run --task``: embeddings, classes and scores on stdout."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from support.encoders import BERT, encoded, write_encoder

from vllm_ext.cli.main import main


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> tuple[str, torch.nn.Module]:
    directory = tmp_path_factory.mktemp("encoder") / "model"
    directory.mkdir()
    model = write_encoder(directory, transformers.AutoModel, BERT)
    return str(directory), model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> tuple[str, torch.nn.Module]:
    directory = tmp_path_factory.mktemp("classifier") / "model"
    directory.mkdir()
    config = {**BERT, "num_labels": 2, "id2label": {0: "dull", 1: "bright"}, "label2id": {"dull": 0, "bright": 1}}
    return str(directory), write_encoder(directory, transformers.AutoModelForSequenceClassification, config)


@pytest.fixture
def run(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["run", "--platform", "cpu", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def embedding(model: torch.nn.Module, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return torch.nn.functional.normalize(model(**encoded(text)).last_hidden_state[0, 0], dim=0)


def test_each_embedding_is_a_line_of_numbers(run, encoder):
    code, out, err = run("--model", encoder[0], "--task", "embed", "the fox", "the dog")

    assert (code, err) == (0, "")
    rows = torch.tensor([[float(number) for number in line.split()] for line in out.splitlines()])
    expected = torch.stack([embedding(encoder[1], "the fox"), embedding(encoder[1], "the dog")])
    torch.testing.assert_close(rows, expected, atol=2e-5, rtol=0)


def test_what_the_model_is_for_need_not_be_said(run, encoder, classifier):
    _, out, _ = run("--model", encoder[0], "the fox")
    assert len(out.split()) == 64

    _, out, _ = run("--model", classifier[0], "the fox")
    assert out.split()[0] in ("dull", "bright")


def test_json_has_prompts_tokens_and_embeddings(run, encoder):
    code, out, err = run("--model", encoder[0], "--task", "embed", "--json", "the fox", "the dog")

    assert (code, err) == (0, "")
    first, second = json.loads(out)
    assert (first["prompt"], second["prompt"]) == ("the fox", "the dog")
    assert first["prompt_token_ids"] == encoded("the fox")["input_ids"][0].tolist()
    torch.testing.assert_close(torch.tensor(first["embedding"]), embedding(encoder[1], "the fox"), atol=2e-5, rtol=0)


def test_a_class_is_named_with_its_probability(run, classifier):
    with torch.inference_mode():
        probs = classifier[1](**encoded("the fox")).logits[0].softmax(dim=0)

    code, out, err = run("--model", classifier[0], "--task", "classify", "the\nfox")

    assert (code, err) == (0, "")
    assert out == f"{['dull', 'bright'][int(probs.argmax())]} {float(probs.max()):.4f}\tthe fox\n"


def test_the_first_prompt_is_compared_with_the_others(run, encoder):
    code, out, err = run("--model", encoder[0], "--task", "score", "the fox", "the dog", "jumps")

    assert (code, err) == (0, "")
    fox = embedding(encoder[1], "the fox")
    expected = [(float(fox @ embedding(encoder[1], text)), text) for text in ("the dog", "jumps")]
    for line, (score, text) in zip(out.splitlines(), expected, strict=True):
        number, shown = line.split("\t")
        assert (float(number), shown) == (pytest.approx(score, abs=1e-4), text)


def test_a_model_that_generates_can_embed(run):
    code, out, err = run("--task", "embed", "It was a truth")

    assert (code, err) == (0, "")
    assert sum(float(number) ** 2 for number in out.split()) == pytest.approx(1, abs=1e-3)


def test_long_prompts_are_cut_on_request(run, encoder):
    long = "the fox " * 50
    code, _, err = run("--model", encoder[0], long)
    assert code == 2
    assert "or let it be cut with truncate_prompt_tokens" in err

    code, out, _ = run("--model", encoder[0], long, "--truncate-prompt-tokens", "10", "--json")
    assert code == 0
    assert len(json.loads(out)[0]["prompt_token_ids"]) == 10


def test_stats_count_prompts(run, encoder):
    code, _, err = run("--model", encoder[0], "the fox", "--stats")

    assert code == 0
    num_tokens = encoded("the fox")["input_ids"].shape[1]
    assert f"prompt tokens        {num_tokens}," in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "score", "x"], "it compares the first prompt with the others; give two at least"),
        (["--task", "generate", "--truncate-prompt-tokens", "5"], "prompts of --task generate are never cut"),
        (["hello", "--truncate-prompt-tokens", "5"], "prompts of --task generate are never cut"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(run, arguments, message):
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert message in err


def test_a_task_that_the_model_does_not_know_is_refused(run, encoder):
    code, out, err = run("--model", encoder[0], "--task", "classify", "x")

    assert (code, out) == (2, "")
    assert "can be asked for: embed, plugin, token_embed" in err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--max-tokens", "5"), ("--temperature", "0.8"), ("--top-p", "1"), ("--top-k", "0"), ("--min-p", "0")),
        *(("--stop", "x"), ("--seed", "1")),
    ],
)
@pytest.mark.parametrize("task", ["embed", "score"])
def test_options_that_choose_tokens_are_refused_where_none_is_generated(run, task, option, value):
    code, out, err = run("--task", task, "a", "b", option, value)

    assert (code, out) == (2, "")
    assert f"command line ({option}): --task {task} generates no tokens to choose" in err


def test_they_are_refused_of_a_model_that_pools_too(run, encoder):
    code, out, err = run("--model", encoder[0], "the fox", "--seed", "1")

    assert (code, out) == (2, "")
    assert "command line (--seed): a model that pools generates no tokens to choose" in err
