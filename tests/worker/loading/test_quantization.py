"""What a quantization method is told of the layers that it lays out."""

from __future__ import annotations

import pytest
import torch
from support.device import make_dispatcher
from support.split import LoneRank
from torch import nn

from vllm_ext import LinearMethod, QuantizationConfig
from vllm_ext.distributed.parallel_state import use_tp_group
from vllm_ext.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm_ext.worker.loading.quantization import quantize_layers


class Told(LinearMethod):
    """Keeps what it is called with, in the order of vLLM's parameters."""

    def create_weights(
        self,
        layer,
        input_size_per_partition,
        output_partition_sizes,
        input_size,
        output_size,
        params_dtype,
        **extra_weight_attrs,
    ):
        self.sizes = (input_size_per_partition, output_partition_sizes, input_size, output_size)
        self.rest = (params_dtype, list(extra_weight_attrs))

    def process_weights_after_loading(self, layer): ...

    def apply(self, layer, x, bias=None): ...


class Method(QuantizationConfig):
    get_name = get_supported_act_dtypes = get_min_capability = from_config = None

    def get_quant_method(self, layer, prefix):
        return Told()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = QKVParallelLinear(12, 4, 6, 2)
        self.merged = MergedColumnParallelLinear(12, [6, 10])
        self.row = RowParallelLinear(12, 20)


@pytest.mark.parametrize(
    ("rank", "world_size", "sizes"),
    [
        (0, 1, {"qkv": (12, [24, 8, 8], 12, 40), "merged": (12, [6, 10], 12, 16), "row": (12, [20], 12, 20)}),
        (1, 2, {"qkv": (12, [12, 4, 4], 12, 40), "merged": (12, [3, 5], 12, 16), "row": (6, [20], 12, 20)}),
    ],
)
def test_a_method_with_vllms_parameters_is_told_the_sizes_over_all_ranks_as_well(random_llama, rank, world_size, sizes):
    with make_dispatcher(random_llama).activate(), use_tp_group(LoneRank(rank, world_size)):
        model = Model()
        quantize_layers(model, Method(), torch.bfloat16)

    told = {name: layer.linear_method for name, layer in model.named_children()}
    assert {name: method.sizes for name, method in told.items()} == sizes
    assert told["row"].rest == (torch.bfloat16, ["weight_loader"])
