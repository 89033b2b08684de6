"""int8 weights: what a layer with them computes, and how it comes by them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.quantized import through_int8, to_int8

from vllm_ext.errors import CheckpointError
from vllm_ext.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm_ext.layers.quantization.int8 import Int8Config, Int8LinearMethod
from vllm_ext.layers.vocab_parallel_embedding import ParallelLMHead

MAKE = {
    "replicated": (lambda: ReplicatedLinear(12, 20, bias=True), {None: 20}),
    "row": (lambda: RowParallelLinear(12, 20, bias=True), {None: 20}),
    "merged": (lambda: MergedColumnParallelLinear(12, [5, 9], bias=True), {0: 5, 1: 9}),
    "qkv": (lambda: QKVParallelLinear(12, 4, 6, 2, bias=True), {"q": 24, "k": 8, "v": 8}),
}


def quantized(layer, is_stored=False):
    """The layer with an int8 weight that is still to be filled."""
    layer.linear_method = Int8LinearMethod(is_stored)
    rows = list(getattr(layer, "local_sizes", [layer.output_size]))
    layer.linear_method.create_weights(layer, layer.input_size, rows, torch.float32, weight_loader=layer.weight_loader)
    return layer


def load(param, tensor, shard):
    param.weight_loader(param, tensor, *([] if shard is None else [shard]))


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("is_stored", [False, True], ids=["while it is read", "stored"])
@pytest.mark.parametrize("rows", [1, 17])
def test_a_layer_multiplies_with_what_its_weights_stand_for(engine, kind, is_stored, rows):
    make, shards = MAKE[kind]
    layer, weights, biases = quantized(make(), is_stored), [], []
    for shard, size in shards.items():
        weights.append(torch.randn(size, 12))
        biases.append(torch.randn(size))
        load(layer.bias, biases[-1], shard)
        if is_stored:
            whole, scale = to_int8(weights[-1])
            load(layer.weight, whole, shard)
            load(layer.weight_scale, scale, shard)
        else:
            load(layer.weight, weights[-1], shard)
    layer.process_weights_after_loading(torch.float32)
    x = torch.randn(rows, 12)

    expected = F.linear(x, torch.cat([through_int8(weight) for weight in weights]), torch.cat(biases))

    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert layer.weight.dtype is torch.int8
    assert (layer.weight.shape, layer.weight_scale.shape) == ((sum(shards.values()), 12), (sum(shards.values()),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_too(engine, dtype):
    engine.vllm_config.model_config.dtype = dtype
    layer = quantized(ReplicatedLinear(32, 24, bias=True))
    weight, bias = torch.randn(24, 32, dtype=dtype), torch.randn(24, dtype=dtype)
    load(layer.weight, weight, None)
    load(layer.bias, bias, None)
    x = torch.randn(5, 32, dtype=dtype)

    found = layer(x)

    expected = F.linear(x.float(), through_int8(weight.float()), bias.float())
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.03)


def test_every_number_is_at_most_half_a_step_off():
    weight = torch.randn(50, 40) * torch.logspace(-3, 3, 50)[:, None]

    off = (through_int8(weight) - weight).abs()

    assert (off <= weight.abs().amax(1, keepdim=True) / 127 / 2 * 1.001).all()


def test_a_row_of_zeros_stays_one(engine):
    layer = quantized(ReplicatedLinear(4, 2))
    load(layer.weight, torch.tensor([[0.0] * 4, [1.0, -2.0, 0.5, 0.0]]), None)

    assert layer(torch.ones(1, 4)).tolist() == [[0.0, pytest.approx(-0.5, abs=0.02)]]


def test_scales_may_be_stored_as_a_column(engine):
    layer = quantized(ReplicatedLinear(4, 2), is_stored=True)

    load(layer.weight_scale, torch.tensor([[0.5], [0.25]]), None)

    assert layer.weight_scale.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("shape", [(20, 11), (19, 12), (20,), (20, 12, 1)])
def test_a_weight_of_another_shape_is_refused_with_both(engine, shape):
    layer = quantized(ReplicatedLinear(12, 20))

    with pytest.raises(CheckpointError) as caught:
        load(layer.weight, torch.ones(shape), None)

    assert str(caught.value) == f"its shape is {list(shape)}; the model has [20, 12] there"


def test_numbers_that_are_no_weights_are_refused(engine):
    with pytest.raises(CheckpointError, match="its dtype is torch.int64; supported: torch.float32"):
        load(quantized(ReplicatedLinear(12, 20)).weight, torch.ones(20, 12, dtype=torch.int64), None)


def test_a_stored_weight_that_is_not_int8_is_refused(engine):
    with pytest.raises(CheckpointError, match=r"its dtype is torch.float32, and .* says int8; .*ignored_layers"):
        load(quantized(ReplicatedLinear(12, 20), is_stored=True).weight, torch.ones(20, 12), None)


def test_the_output_layer_is_left_as_it_is_unless_told_otherwise(engine):
    head = ParallelLMHead(600, 12)
    told = Int8Config.from_config({"quant_method": "int8", "ignored_layers": ["mlp.down_proj"]})

    assert Int8Config().get_quant_method(head, "lm_head") is None
    assert isinstance(told.get_quant_method(head, "lm_head"), Int8LinearMethod)
    assert told.get_quant_method(head, "model.layers.0.mlp.down_proj") is None
    assert told.get_quant_method(head, "model.layers.0.mlp.gate_up_proj").is_stored


def test_layers_are_left_out_by_the_checkpoints_names(engine):
    config = Int8Config(ignored_layers=["q_proj", "k_proj", "v_proj", "model.layers.1.mlp.up_proj"])
    config.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    layer = ReplicatedLinear(12, 20)

    assert config.get_quant_method(layer, "model.layers.0.self_attn.qkv_proj") is None
    assert config.get_quant_method(layer, "model.layers.0.mlp.gate_up_proj") is not None
    with pytest.raises(ValueError, match=r"leaves out model.layers.1.mlp.up_proj, and model.layers.1.mlp.gate_up_proj"):
        config.get_quant_method(layer, "model.layers.1.mlp.gate_up_proj")


def test_half_precision_keeps_within_its_range(engine):
    engine.vllm_config.model_config.dtype = torch.float16
    layer = quantized(ReplicatedLinear(512, 4))
    load(layer.weight, torch.full((4, 512), 0.01), None)

    found = layer(torch.full((1, 512), 100.0, dtype=torch.float16))

    assert found.tolist() == [[pytest.approx(512, rel=0.01)] * 4]


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"quant_method": "int8", "bits": 4}, "it has bits, and only ignored_layers, quant_method are known"),
        (
            {"quant_method": "int8", "ignored_layers": "lm_head"},
            "ignored_layers is 'lm_head'; it takes a list of names",
        ),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(config, fault):
    with pytest.raises(ValueError, match=fault):
        Int8Config.from_config(config)
