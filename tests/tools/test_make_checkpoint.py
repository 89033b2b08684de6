"""tools/make_checkpoint.py: what it writes is a Hugging Face model directory, and repeatable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.tools import load_tool

tool = load_tool("make_checkpoint")

SMALL = tool.Shape(
    hidden_size=48, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=80, vocab_size=600,
    max_position_embeddings=128,
)  # fmt: skip


def write(path: Path, shape=SMALL, **options) -> Path:
    tool.write_checkpoint(path, shape, **options)
    return path


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_loads_every_tensor_into_its_place(tmp_path, tie, shards):
    directory = write(tmp_path / "model", dataclasses.replace(SMALL, tie=tie), shards=shards)

    model, info = transformers.LlamaForCausalLM.from_pretrained(directory, output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert (
        model.config.num_hidden_layers,
        model.config.num_attention_heads,
        model.config.num_key_value_heads,
        model.config.head_dim,
    ) == (2, 4, 2, 16)
    state = model.state_dict()
    assert_same_weights(weights(directory), {name: state[name] for name in weights(directory)})
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie


def test_few_greedy_choices_are_between_nearly_equal_logits(tmp_path):
    model = transformers.LlamaForCausalLM.from_pretrained(write(tmp_path / "model"))
    tokens = torch.randint(0, SMALL.vocab_size, (4, 100), generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        best, second = model(tokens).logits.topk(2).values.unbind(-1)

    assert ((best - second) > 1e-3).float().mean() >= 0.95


def test_the_tokenizer_has_the_model_s_vocabulary_and_gives_text_back(tmp_path):
    directory = write(tmp_path / "model")
    text = "Hello, wörld! 12\n\tabc 漢字"

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)

    assert SMALL.vocab_size == len(tokenizer)
    assert text == tokenizer.decode(tokenizer(text).input_ids)
    assert tokenizer.eos_token_id == 0
    assert len(tokenizer("abab").input_ids) < 4, "merges are used"


def test_options_decide_the_weights(tmp_path):
    first = write(tmp_path / "first")
    again = write(tmp_path / "again")
    other = write(tmp_path / "other", seed=1)

    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert not torch.equal(weights(first)["lm_head.weight"], weights(other)["lm_head.weight"])


def test_shards_hold_the_same_weights_and_the_index_names_them(tmp_path):
    whole = weights(write(tmp_path / "whole"))
    sharded = write(tmp_path / "sharded", shards=4)

    index = json.loads((sharded / "model.safetensors.index.json").read_text())

    assert len(list(sharded.glob("*.safetensors"))) == 4
    assert_same_weights(whole, weights(sharded))
    assert sum(tensor.nbytes for tensor in whole.values()) == index["metadata"]["total_size"]
    for name, file in index["weight_map"].items():
        assert name in load_file(sharded / file)
    assert whole.keys() == index["weight_map"].keys()


def test_the_dtype_is_that_of_the_weights_and_of_the_configuration(tmp_path):
    directory = write(tmp_path / "model", dtype=torch.bfloat16)

    assert {torch.bfloat16} == {tensor.dtype for tensor in weights(directory).values()}
    assert torch.bfloat16 == transformers.LlamaForCausalLM.from_pretrained(directory, dtype="auto").dtype


def test_the_default_shape_is_the_reference_shape():
    arguments = tool.parse_arguments(["out"])

    assert (
        arguments.hidden_size, arguments.layers, arguments.heads, arguments.kv_heads, arguments.head_dim,
    ) == (512, 8, 8, 4, 64)  # fmt: skip
    assert (arguments.intermediate_size, arguments.vocab_size, arguments.dtype) == (1408, 8000, "float32")
    size = sum(tensor.numel() for _, tensor in tool.random_tensors(tool.Shape(), seed=0))
    assert 31e6 < size < 33e6


def test_the_command_writes_what_its_options_say(tmp_path):
    output = tmp_path / "model"
    sizes = "--hidden-size 32 --layers 1 --heads 2 --kv-heads 1 --head-dim 8 --intermediate-size 24"

    code = tool.main([str(output), *sizes.split(), "--vocab-size", "300", "--tie", "--dtype", "float16"])

    assert code == 0
    config = json.loads((output / "config.json").read_text())
    expected = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 24,
        "vocab_size": 300,
        "tie_word_embeddings": True,
        "dtype": "float16",
    }
    assert {key: config[key] for key in expected} == expected
    assert weights(output)["model.embed_tokens.weight"].shape == (300, 32)
    assert "lm_head.weight" not in weights(output)


@pytest.mark.parametrize(
    "options, message",
    [
        ("--layers 0", "layers is 0; it takes a positive number"),
        ("--heads 3 --kv-heads 2", "3 heads cannot share 2 KV heads evenly"),
        ("--head-dim 7", "head_dim is 7; rotary embeddings need an even number"),
        ("--vocab-size 256", "vocab_size is 256; the bytes and end of text are 257"),
        ("--layers 1 --hidden-size 8 --shards 40", "12 tensors cannot be written in 40 shards"),
    ],
)
def test_impossible_options_are_refused_and_nothing_is_written(tmp_path, capsys, options, message):
    code = tool.main([str(tmp_path / "model"), *options.split()])

    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_directory_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious").write_text("x")

    code = tool.main([str(tmp_path), "--layers", "1", "--hidden-size", "8"])

    assert code == 2
    assert "is not an empty directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
