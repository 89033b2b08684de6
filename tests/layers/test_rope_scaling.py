"""Each kind of rope scaling against the rotary embedding of transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.errors import CheckpointError, UnsupportedModel
from vllm_ext.layers.rope_scaling import Rope
from vllm_ext.layers.rotary_embedding import get_rope

HEAD_SIZE, TRAINED, SERVED = 16, 64, 200
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
KINDS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn, original length": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48},
    "yarn, betas": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0},
    "yarn, not truncated": {"rope_type": "yarn", "factor": 4.0, "truncate": False},
    "yarn, attention factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    "yarn, mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.8, "mscale_all_dim": 1.2},
}


def config_of(rope: dict) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * HEAD_SIZE,
        num_attention_heads=4,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_theta": 700.0} | rope,
    )


@pytest.mark.parametrize("rope", KINDS.values(), ids=KINDS.keys())
def test_the_rotation_is_that_of_transformers(engine, rope):
    config = config_of(rope)
    # The longest sequence that is served: 'dynamic' depends on it.
    positions = torch.arange(SERVED)
    query, key = torch.randn(SERVED, 4, HEAD_SIZE), torch.randn(SERVED, 1, HEAD_SIZE)
    cos, sin = LlamaRotaryEmbedding(config)(query, positions[None])
    expected = apply_rotary_pos_emb(query[None], key[None], cos, sin, unsqueeze_dim=2)

    rotate = get_rope(HFConfig(config.to_dict()), HEAD_SIZE, SERVED)
    rotated = rotate(positions, query.flatten(1), key.flatten(1))

    for ours, theirs in zip(rotated, expected, strict=True):
        torch.testing.assert_close(ours, theirs[0].flatten(1), atol=1e-4, rtol=1e-5)


def test_dynamic_scaling_changes_nothing_where_sequences_are_no_longer_than_those_trained_on(engine):
    x, positions = torch.randn(TRAINED, HEAD_SIZE), torch.arange(TRAINED)
    rotated = [
        get_rope(HFConfig({"max_position_embeddings": TRAINED, "rope_parameters": rope}), HEAD_SIZE, TRAINED)
        for rope in (KINDS["default"], KINDS["dynamic"])
    ]

    plain, dynamic = (rope(positions, x)[0] for rope in rotated)

    torch.testing.assert_close(plain, dynamic)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}, "rope_scaling": KINDS["linear"]},
        {"rope_parameters": KINDS["linear"], "rope_theta": 700.0, "rope_scaling": KINDS["yarn"]},
        {"rope_parameters": KINDS["yarn"] | {"rope_theta": 700.0}, "original_max_position_embeddings": 40},
        {"rope_parameters": KINDS["yarn, original length"], "original_max_position_embeddings": 40},
        {"rope_parameters": KINDS["llama3"], "original_max_position_embeddings": 24},
        {"rope_parameters": {k: v for k, v in KINDS["llama3"].items() if k != "original_max_position_embeddings"}},
        {"rope_parameters": KINDS["linear"], "original_max_position_embeddings": 24},
    ],
)
def test_what_lies_beside_the_parameters_counts_as_for_transformers(tmp_path, values):
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": TRAINED}
    (tmp_path / "config.json").write_text(json.dumps(config | values))
    theirs = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path))

    frequencies, factor = Rope.read(HFConfig(config | values), HEAD_SIZE, SERVED).frequencies()

    torch.testing.assert_close(frequencies, theirs.inv_freq)
    assert factor == pytest.approx(theirs.attention_scaling)


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_the_old_spelling_means_the_same(engine, key):
    old = {"rope_theta": 900.0, "rope_scaling": {key: "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 900.0, "rope_type": "linear", "factor": 2.0}}
    x, positions = torch.randn(5, 8), torch.arange(5)

    ours = [get_rope(HFConfig(config), 8, 20)(positions, x)[0] for config in (old, new)]

    assert torch.equal(*ours)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "linear"}, "factor of the linear rope is missing; it takes a number above 0"),
        ({"rope_type": "dynamic", "factor": -1}, "factor of the dynamic rope is -1; it takes"),
        ({"rope_type": "yarn", "factor": "4"}, "factor of the yarn rope is '4'; it takes"),
        ({"rope_type": "yarn", "factor": 4, "beta_fast": 0}, "beta_fast of the yarn rope is 0; it takes"),
        ({"rope_type": "llama3", **LLAMA3, "factor": None}, "factor of the llama3 rope is missing"),
        ({"rope_theta": True}, "rope_theta is True; it takes a number above 0"),
        ([1], r"rope parameters are \[1\]; they take an object"),
    ],
)
def test_a_wrong_parameter_is_named(engine, rope, message):
    with pytest.raises(CheckpointError, match=message):
        get_rope(HFConfig({"rope_parameters": rope}), 8, 20)


def test_an_unknown_kind_of_scaling_is_refused(engine):
    kinds = "default, dynamic, linear, llama3, yarn"
    with pytest.raises(UnsupportedModel, match=f"rope type 'longrope' is not supported; supported: {kinds}"):
        get_rope(HFConfig({"rope_scaling": {"rope_type": "longrope"}}), 8, 20)


def test_a_rotation_of_a_part_of_each_head_is_refused(engine):
    with pytest.raises(UnsupportedModel, match=r"partial_rotary_factor is 0.5, and heads are rotated whole"):
        get_rope(HFConfig({"partial_rotary_factor": 0.5}), 8, 20)
