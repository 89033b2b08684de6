"""Llama's logits are those of transformers, however the tokens are cut into steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.device import driven_worker
from support.families import copy_with_config
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_ext.errors import CheckpointError, UnsupportedModel

VOCAB = 120
SHAPES = {
    "grouped heads": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "one KV head": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "as many KV heads": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32},
    "tied embeddings": {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "biases": {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "llama3 rope": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}


def make_reference(**shape) -> LlamaForCausalLM:
    """A random model in which no bias and no norm weight is trivial."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        **({"head_dim": 16, "max_position_embeddings": 128} | shape),
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param) / param.shape[-1] ** 0.5)
    return model


@torch.inference_mode()
def reference_logits(model: LlamaForCausalLM, token_ids: list[int]) -> torch.Tensor:
    """Logits after each token, ``[tokens, vocabulary]``."""
    return model(torch.tensor([token_ids])).logits[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_prefill_and_decode_give_the_logits_of_transformers(tmp_path, shape):
    reference = make_reference(**shape)
    reference.save_pretrained(tmp_path)
    token_ids = torch.randint(VOCAB, (37,)).tolist()

    with driven_worker(tmp_path, engine__dtype="float32", engine__block_size=4) as driver:
        driver.add("r", token_ids)
        [token] = driver.step({"r": 37})["r"]
        logits = [driver.logits]
        for _ in range(6):
            token_ids.append(token)
            [token] = driver.step({"r": 1})["r"]
            logits.append(driver.logits)

    torch.testing.assert_close(torch.cat(logits), reference_logits(reference, token_ids)[36:], atol=1e-4, rtol=0)


EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def tied_model(path: Path, names: Sequence[str]) -> LlamaForCausalLM:
    """A model whose embedding is its output layer, stored under ``names``."""
    reference = make_reference(num_attention_heads=2, tie_word_embeddings=True)
    reference.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    one = tensors.pop(EMBEDDING)
    save_file(tensors | {name: one.clone() for name in names}, path / "model.safetensors")
    return reference


@pytest.mark.parametrize("names", [(EMBEDDING,), (OUTPUT,), (EMBEDDING, OUTPUT)])
def test_tied_embeddings_may_have_either_name_or_both(tmp_path, names):
    reference = tied_model(tmp_path, names)
    token_ids = torch.randint(VOCAB, (9,)).tolist()

    with driven_worker(tmp_path, engine__dtype="float32") as driver:
        driver.add("r", token_ids)
        driver.step({"r": 9})
        logits = driver.logits

    torch.testing.assert_close(logits, reference_logits(reference, token_ids)[-1:], atol=1e-4, rtol=0)


def test_tied_embeddings_that_differ_are_refused(tmp_path):
    tied_model(tmp_path, (EMBEDDING, OUTPUT))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[OUTPUT][7, 3] += 1
    save_file(tensors, tmp_path / "model.safetensors")

    with (
        pytest.raises(CheckpointError, match="config.json says that the two are one; set tie_word_embeddings to false"),
        driven_worker(tmp_path, engine__dtype="float32"),
    ):
        pass


def test_a_long_step_goes_through_the_feed_forward_part_in_pieces(tmp_path):
    reference = make_reference(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048)
    reference.save_pretrained(tmp_path)
    token_ids = torch.randint(VOCAB, (1100,)).tolist()
    sizes = []

    with driven_worker(tmp_path, num_blocks=80, engine__dtype="float32") as driver:
        first = driver.worker.model_runner.model.model.layers[0]
        first.mlp.act_fn.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        driver.add("r", token_ids)
        driver.step({"r": 1100})
        logits = driver.logits

    assert sizes == [512, 512, 76]
    torch.testing.assert_close(logits, reference_logits(reference, token_ids)[-1:], atol=1e-4, rtol=0)


def test_a_mixed_batch_gives_each_request_its_own_logits(tmp_path):
    reference = make_reference(num_attention_heads=4, num_key_value_heads=2)
    reference.save_pretrained(tmp_path)
    prompts = {name: torch.randint(VOCAB, (length,)).tolist() for name, length in zip("abc", (5, 21, 40), strict=True)}

    with driven_worker(tmp_path, engine__dtype="float32", engine__block_size=8) as driver:
        for name, prompt in prompts.items():
            driver.add(name, prompt)
        [token] = driver.step({"a": 5})["a"]
        # A decode, a whole prompt and the first chunk of a prompt; then a decode, a decode and the second chunk.
        assert driver.step({"a": 1, "b": 21, "c": 16})["c"] == []
        mixed = driver.step({"c": 24, "b": 1, "a": 1})
        logits = driver.logits

    assert all(len(tokens) == 1 for tokens in mixed.values())
    assert token == reference_logits(reference, prompts["a"])[-1].argmax()
    torch.testing.assert_close(logits[0], reference_logits(reference, prompts["c"])[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(tmp_path, dtype):
    reference = make_reference(num_attention_heads=4, num_key_value_heads=2)
    reference.save_pretrained(tmp_path)
    token_ids = torch.randint(VOCAB, (30,)).tolist()

    with driven_worker(tmp_path, engine__dtype=dtype) as driver:
        driver.add("r", token_ids)
        driver.step({"r": 30})
        logits = driver.logits

    assert logits.dtype is getattr(torch, dtype)
    # Eight bits of mantissa in bfloat16; logits have a standard deviation near one.
    torch.testing.assert_close(logits[0].float(), reference_logits(reference, token_ids)[-1], atol=0.1, rtol=0)


def test_rotary_buffers_of_old_checkpoints_are_passed_over(tmp_path):
    reference = make_reference(num_attention_heads=2, num_key_value_heads=1)
    reference.save_pretrained(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")

    with driven_worker(tmp_path) as driver:
        driver.add("r", [1, 2, 3])
        driver.step({"r": 3})

        torch.testing.assert_close(driver.logits[0], reference_logits(reference, [1, 2, 3])[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "rope type 'longrope' is not supported"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    ],
)
def test_what_is_not_implemented_is_refused(random_llama, tmp_path, changes, message):
    model = copy_with_config(random_llama, tmp_path, changes)

    with pytest.raises(UnsupportedModel, match=message), driven_worker(model):
        pass
