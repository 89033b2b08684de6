"""``POST /v1/embeddings``, ``/classify`` and ``/pooling``: what the engine pools, over HTTP."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch
import transformers
from support.encoders import BERT, write_encoder
from support.server import running_server

LONG = [3 + i % 90 for i in range(60)]
PROMPTS = [[7, 5, 9], LONG]


@pytest.fixture(scope="module")
def expected(random_llama):
    """Means of transformers' states, of length 1."""
    model = transformers.AutoModel.from_pretrained(random_llama, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [model(torch.tensor([prompt])).last_hidden_state[0].mean(dim=0) for prompt in PROMPTS]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1).numpy()


@pytest.fixture(scope="module")
def server(random_llama):
    with running_server(model=random_llama, engine__runner="pooling", engine__pooling_type="MEAN") as running:
        yield running


def embedded(server, **body):
    answer = server.post("/v1/embeddings", {"input": PROMPTS} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_vector_for_each_prompt_in_their_order(server, expected):
    answer = embedded(server)

    assert [(item["index"], item["object"]) for item in answer["data"]] == [(0, "embedding"), (1, "embedding")]
    np.testing.assert_allclose([item["embedding"] for item in answer["data"]], expected, atol=1e-5)
    assert answer["object"] == "list"
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]) == (63, 63)
    server.check_books()


def test_in_base64_it_is_the_same_numbers(server, expected):
    encoded = [item["embedding"] for item in embedded(server, encoding_format="base64")["data"]]

    numbers = [np.frombuffer(base64.b64decode(each), "<f4") for each in encoded]
    np.testing.assert_allclose(numbers, expected, atol=1e-5)


def test_pooling_has_the_models_other_tasks(server, expected):
    answer = server.post("/pooling", {"input": PROMPTS[0], "task": "token_embed", "use_activation": False}).json()
    default = server.post("/pooling", {"input": PROMPTS}).json()

    (item,) = answer["data"]
    assert item["object"] == "pooling"
    assert np.array(item["data"]).shape == (3, 64)
    np.testing.assert_allclose([item["data"] for item in default["data"]], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param", "complaint"),
    [
        ("/v1/embeddings", {"input": []}, "input", "input is an empty list; it takes a text, a list of texts, a list"),
        ("/v1/embeddings", {"input": [[5], "a"]}, "input", "input is a list of several kinds; it takes"),
        ("/v1/embeddings", {"input": [5], "dimensions": 65}, "dimensions", "dimensions is 65, and the model's embeddi"),
        ("/v1/embeddings", {"input": [5] * 300}, None, "300 tokens"),
        (
            "/v1/embeddings",
            {"input": [5], "endianness": "big"},
            "endianness",
            'is "big"; it takes "native" or "little"',
        ),
        ("/classify", {"input": [5]}, "task", "cannot classify; it can be asked for: "),
        ("/pooling", {}, "input", "neither input nor data is given"),
        ("/pooling", {"input": [5], "data": "x"}, "data", "input and data are both given"),
        ("/pooling", {"data": "x"}, None, "takes an IO processor: "),
        ("/pooling", {"input": [5], "task": "rank"}, "task", "task has a wrong value: invalid enum value 'rank'"),
        ("/v1/completions", {"prompt": [5]}, None, "pools: it has the routes /v1/embeddings, /classify and /pooling"),
    ],
)
def test_what_the_model_cannot_do_is_refused_with_the_reason(server, path, body, param, complaint):
    answer = server.post(path, body)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert complaint in error["message"]
    assert error["param"] == param


def test_data_goes_through_the_io_processor(plugins):
    plugins.project("vllm_ext_dummy_csv")
    table = "id,text\n1,She had\n2,\n"
    settings = {"engine__runner": "pooling", "plugins__io_processor__use": "csv_embeddings"}

    with running_server(**settings) as server:
        answer = server.post("/pooling", {"data": table})
        refused = server.post("/pooling", {"data": 5})
        with_more = server.post("/pooling", {"data": table, "task": "embed"})
        (vector,) = server.post("/v1/embeddings", {"input": "She had"}).json()["data"]

    assert answer.status_code == 200, answer.text
    head, row, other = answer.json()["data"].splitlines()
    assert (head, other) == ("id,text,embedding", "2,,")
    assert json.loads(row.split(",", 2)[2].strip('"')) == pytest.approx(vector["embedding"], abs=1e-5)
    assert refused.status_code == 400
    assert "the data is int; it takes the text of a CSV file" in refused.json()["error"]["message"]
    assert (with_more.status_code, with_more.json()["error"]["param"]) == (400, "data")


@pytest.mark.slow
def test_a_classifier_says_how_likely_each_class_is(tmp_path):
    directory = tmp_path / "model"
    model = write_encoder(
        directory, transformers.AutoModelForSequenceClassification, BERT | {"id2label": {0: "bad", 1: "good"}}
    )
    with torch.inference_mode():
        expected = model(torch.tensor([[2, 7, 9, 3]])).logits.softmax(dim=-1)[0]

    with running_server(model=directory) as server:
        (item,) = server.post("/classify", {"input": [2, 7, 9, 3]}).json()["data"]

    assert item["probs"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert item["label"] == ["bad", "good"][int(expected.argmax())]
    assert (item["index"], item["num_classes"]) == (0, 2)
