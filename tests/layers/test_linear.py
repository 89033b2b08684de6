"""Dense layers, and how their weights are laid out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vllm_ext import _custom_ops
from vllm_ext.errors import CheckpointError
from vllm_ext.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm_ext.layers.linear_method import (
    KernelLinearMethod,
    OneDNNLinearMethod,
    PackedLinearMethod,
    UnquantizedLinearMethod,
)
from vllm_ext.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding


def filled(layer, *shards):
    """The layer with random weights, loaded part by part; and these weights and biases, stacked."""
    weights, biases = [], []
    for shard, rows in shards:
        weights.append(torch.randn(rows, layer.input_size))
        biases.append(torch.randn(rows))
        for param, tensor in ((layer.weight, weights[-1]), (layer.bias, biases[-1])):
            if param is not None:
                param.weight_loader(param, tensor, *([] if shard is None else [shard]))
    return torch.cat(weights), torch.cat(biases)


@pytest.mark.parametrize("rows", [1, 2, 16, 65])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("make", "shards"),
    [
        (lambda bias: ReplicatedLinear(12, 20, bias), [(None, 20)]),
        (lambda bias: ColumnParallelLinear(12, 20, bias), [(None, 20)]),
        (lambda bias: RowParallelLinear(12, 20, bias), [(None, 20)]),
        (lambda bias: MergedColumnParallelLinear(12, [5, 9], bias), [(1, 9), (0, 5)]),
        (lambda bias: QKVParallelLinear(12, 4, 6, 2, bias), [("v", 8), ("q", 24), ("k", 8)]),
    ],
    ids=["replicated", "column", "row", "merged", "qkv"],
)
def test_a_layer_multiplies_with_what_was_loaded(engine, make, shards, bias, rows):
    layer = make(bias)
    weight, biases = filled(layer, *shards)
    if len(shards) > 1:
        # The parts were loaded in another order than the one they stand in.
        parts = dict(zip([shard for shard, _ in shards], weight.split([n for _, n in shards]), strict=True))
        bias_parts = dict(zip([shard for shard, _ in shards], biases.split([n for _, n in shards]), strict=True))
        order = sorted(parts, key=lambda shard: "qkv".index(shard) if isinstance(shard, str) else shard)
        weight, biases = torch.cat([parts[s] for s in order]), torch.cat([bias_parts[s] for s in order])
    x = torch.randn(rows, 12)
    before = layer(x) if isinstance(layer.linear_method, UnquantizedLinearMethod) else None

    layer.process_weights_after_loading(torch.float32)

    torch.testing.assert_close(layer(x), F.linear(x, weight, biases if bias else None), atol=1e-5, rtol=1e-5)
    assert before is None


@pytest.mark.parametrize("method", [KernelLinearMethod, OneDNNLinearMethod])
def test_the_platforms_method_packs_and_drops_the_dense_weight(engine, monkeypatch, method):
    if method is OneDNNLinearMethod:
        monkeypatch.setattr(_custom_ops, "linear_panel", lambda dtype: 0)
    elif not _custom_ops.linear_panel(torch.float32):
        pytest.skip("the compiled kernel does not run here")
    layer = ReplicatedLinear(8, 40, bias=True)
    weight, bias = filled(layer, (None, 40))
    assert isinstance(layer.linear_method, PackedLinearMethod)

    layer.process_weights_after_loading(torch.float32)

    assert isinstance(layer.linear_method, method)
    assert layer.weight is None
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_a_packed_layer_cannot_multiply_before_its_weight_was_packed(engine):
    layer = ReplicatedLinear(8, 8)

    with pytest.raises(RuntimeError, match="process_weights_after_loading"):
        layer(torch.randn(1, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_too(engine, dtype):
    engine.vllm_config.model_config.dtype = dtype
    layer = ReplicatedLinear(32, 24, bias=True)
    weight, bias = filled(layer, (None, 24))

    layer.process_weights_after_loading(dtype)
    x = torch.randn(3, 32, dtype=dtype)

    expected = F.linear(x.double(), weight.to(dtype).double(), bias.to(dtype).double())
    torch.testing.assert_close(layer(x).double(), expected, atol=0.02, rtol=0.02)


def test_what_cannot_be_packed_is_multiplied_as_it_is(engine):
    engine.vllm_config.model_config.dtype = torch.float64
    layer = ReplicatedLinear(8, 6)
    weight, _ = filled(layer, (None, 6))
    x = torch.randn(2, 8, dtype=torch.float64)

    layer.process_weights_after_loading(torch.float64)

    assert isinstance(layer.linear_method, UnquantizedLinearMethod)
    torch.testing.assert_close(layer(x), F.linear(x, weight.double()))


def test_a_checkpoints_tensor_of_another_shape_is_refused(engine):
    layer = QKVParallelLinear(12, 4, 6, 2)

    with pytest.raises(CheckpointError, match=r"its shape is \[24, 12\]; the model has \[8, 12\]"):
        layer.weight.weight_loader(layer.weight, torch.ones(24, 12), "k")


def test_embedding_and_head_may_share_a_weight(engine):
    embedding = VocabParallelEmbedding(10, 4)
    head = ParallelLMHead(10, 4)
    head.tie_weights(embedding)
    weight = torch.randn(10, 4)
    embedding.weight.weight_loader(embedding.weight, weight)

    head.process_weights_after_loading(torch.float32)

    assert torch.equal(embedding(torch.tensor([3, 9])), weight[[3, 9]])
    torch.testing.assert_close(head(weight[:2]), weight[:2] @ weight.T)
