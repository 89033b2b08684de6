"""The shipped demo model: its text, its files, and the script that made it."""

from __future__ import annotations

import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.tools import load_tool
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "vllm_ext" / "assets" / "demo_model"
CORPUS = ROOT / "tools" / "demo_corpus" / "austen.txt.xz"
SCRIPT = ROOT / "tools" / "train_demo_model.py"
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}
COPY_LENGTH = 40
# At 0.8 about one set of twenty samples in twenty has a stock phrase such as "I should not have thought it
# possible that", which is in the novels, too, and is just longer than COPY_LENGTH.
TEMPERATURE = 0.9
PROMPTS = [
    "The morning was so fine that",
    "Emma looked at her father, and",
    "When the carriage stopped at the door,",
    '"I cannot believe it," said Anne,',
    "Mr. Darcy walked across the room, and",
    "After dinner the young ladies",
    "The letter had been lying on the table when",
    "Fanny was left alone in the garden;",
    "Her sister, who had been listening to every word,",
    "There was a ball at Highbury, and",
    "Catherine opened the window and saw",
    "It had rained all night;",
    '"You must not go to London," cried Marianne;',
    "The Captain smiled as he answered,",
    "Elizabeth had seldom been so happy as",
    "As soon as the visitors were gone,",
    "Sir Walter thought very little of",
    "Nobody in the family could say why",
    "Elinor took the book from the shelf and",
    "In the course of the evening",
]


def words(text: str) -> list[str]:
    """Return the lower-case words of ``text``, runs of letters and apostrophes."""
    return [word for word in (run.strip("'") for run in re.findall(r"[a-z']+", text.lower())) if word]


def whole_words(text: str) -> list[str]:
    """Return the words of a continuation without pieces that the prompt or the token limit cut."""
    return words(re.sub(r"^[A-Za-z']+|[A-Za-z']+$", "", text))


def runs(text: str) -> set[str]:
    """Return all stretches of ``COPY_LENGTH`` characters of ``text``, white space normalised."""
    text = " ".join(text.split())
    return {text[i : i + COPY_LENGTH] for i in range(len(text) - COPY_LENGTH + 1)}


def copied(texts: list[str], corpus: str) -> set[str]:
    """Return the stretches of ``COPY_LENGTH`` characters that ``texts`` have in common with ``corpus``."""
    wanted = set().union(*map(runs, texts))
    stretches = (corpus[i : i + COPY_LENGTH] for i in range(len(corpus) - COPY_LENGTH + 1))
    return {stretch for stretch in stretches if stretch in wanted}


def train(folder: Path, *options: str, timeout: float) -> dict[str, float]:
    """Run the training script into ``folder`` and return the record it prints."""
    command = [sys.executable, str(SCRIPT), "--output", str(folder), *options]
    # On busy cores, threads that wait by spinning make the training many times slower.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def corpus() -> str:
    """The paragraphs of the corpus with single spaces between all words."""
    lines = lzma.decompress(CORPUS.read_bytes()).decode().splitlines()
    return " ".join(" ".join(line for line in lines if not line.startswith("#")).split())


@pytest.fixture(scope="module")
def samples() -> list[str]:
    """Twenty continuations of 60 tokens by the shipped model."""
    from vllm_ext import LLM, SamplingParams

    params = [
        SamplingParams(temperature=TEMPERATURE, max_tokens=60, seed=seed, ignore_eos=True)
        for seed in range(len(PROMPTS))
    ]
    return [output.outputs[0].text for output in LLM().generate(PROMPTS, params)]


def test_samples_are_made_of_english_words(samples: list[str], corpus: str) -> None:
    known = set(words(corpus))
    seen = [word for text in samples for word in whole_words(text)]
    assert len(seen) > 400
    unknown = [word for word in seen if word not in known]
    assert len(unknown) <= 0.1 * len(seen), unknown


def test_samples_do_not_copy_the_corpus(samples: list[str], corpus: str) -> None:
    assert not copied(samples, corpus)


def test_copies_would_be_found(corpus: str) -> None:
    assert copied(["Oh!\n" + corpus[1000:1060]], corpus)


def test_files_and_size() -> None:
    files = [path for path in MODEL.iterdir() if path.is_file()]
    assert {path.name for path in files} == FILES
    assert sum(path.stat().st_size for path in files) <= 4_000_000


def test_weights_are_float16_llama_tensors() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    with safe_open(MODEL / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {tensor.get_dtype() for tensor in tensors.values()} == {"F16"}
        shape = tensors["model.embed_tokens.weight"].get_shape()
    assert shape == [config["vocab_size"], config["hidden_size"]]
    assert len(tensors) == 2 + 9 * config["num_hidden_layers"]


def test_tokenizer_keeps_text_and_adds_nothing() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    text = "Emma, d\u00e9j\u00e0 vu \u2014 \U0001f600\n  and 3 spaces  "
    ids = tokenizer.encode(text).ids
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("<|endoftext|>") == 0


@pytest.mark.slow
def test_script_writes_a_loadable_folder(tmp_path: Path) -> None:
    from vllm_ext import LLM, SamplingParams

    record = train(tmp_path, "--steps", "3", "--eval-chapters", "1", timeout=300)
    assert record["steps"] == 3
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "training.json").read_text()) == record
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / name).read_text() == (MODEL / name).read_text(), name
    (output,) = LLM(model=str(tmp_path)).generate(["Emma"], [SamplingParams(max_tokens=5, ignore_eos=True)])
    assert len(output.outputs[0].token_ids) == 5


@pytest.mark.parametrize("options", [[], ["--output", "x", "--steps", "0"], ["--output", "x", "--corpus", "missing"]])
def test_script_refuses_bad_arguments(monkeypatch, capsys, options: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    with pytest.raises(SystemExit) as exited:
        load_tool(SCRIPT.stem).main()
    assert exited.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.slow
def test_training_again_gives_the_recorded_figure(tmp_path: Path) -> None:
    found = torch.cpu.get_capabilities()
    if not any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        pytest.skip("this processor has no products of bfloat16, without which training takes half a day")
    recorded = json.loads((MODEL / "training.json").read_text())
    record = train(tmp_path, timeout=45 * 60)
    for name in ("steps", "seed", "parameters", "corpus_sha256"):
        assert record[name] == recorded[name]
    assert record["held_out_bits_per_byte"] == pytest.approx(recorded["held_out_bits_per_byte"], rel=0.03)
