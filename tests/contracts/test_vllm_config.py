"""What platforms and workers that are written for vLLM read of the configuration."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vllm_ext.contracts.vllm_config import HFConfig, ModelConfig, ParallelConfig, VllmConfig
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.errors import CheckpointError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 600,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}
GPT2 = {"vocab_size": 600, "n_embd": 64, "n_head": 4, "n_layer": 2}


def config_of(values: dict[str, object]) -> ModelConfig:
    return ModelConfig("model", HFConfig(values), torch.float32, 128, "model")


def test_sizes_of_a_model_are_those_of_its_configuration():
    model, two = config_of(LLAMA), ParallelConfig(tensor_parallel_size=2)

    assert (model.get_vocab_size(), model.get_hidden_size(), model.get_head_size()) == (600, 64, 8)
    assert (model.get_total_num_kv_heads(), model.get_num_kv_heads(two), model.get_num_attention_heads(two)) == (
        2,
        1,
        4,
    )
    assert model.get_num_kv_heads(ParallelConfig(tensor_parallel_size=4)) == 1
    assert model.get_num_layers(two) == model.get_num_layers_by_block_type(two) == 3
    assert model.get_num_layers_by_block_type(two, "mamba") == 0
    assert (model.architecture, model.get_sliding_window()) == ("LlamaForCausalLM", None)
    assert model.hf_text_config is model.hf_config


def test_a_head_size_and_a_window_that_are_named_count():
    assert config_of(LLAMA | {"head_dim": 16, "sliding_window": 32}).get_head_size() == 16
    assert config_of(LLAMA | {"sliding_window": 32}).get_sliding_window() == 32
    assert config_of(LLAMA | {"sliding_window": 32, "use_sliding_window": False}).get_sliding_window() is None


def test_the_shorter_names_of_gpt2_are_known():
    model, one = config_of(GPT2), ParallelConfig()

    assert (model.get_hidden_size(), model.get_head_size(), model.get_num_layers(one)) == (64, 16, 2)
    assert model.get_num_kv_heads(one) == model.get_num_attention_heads(one) == 4


def test_a_size_that_is_missing_is_named():
    with pytest.raises(CheckpointError, match="num_attention_heads is missing"):
        config_of({"hidden_size": 64}).get_head_size()


def test_a_worker_has_vllms_parts_of_the_configuration():
    worker = WorkerBase(VllmConfig(config_of(LLAMA)), 0, 0, "")

    parts = (worker.lora_config, worker.speculative_config, worker.kv_transfer_config)
    assert (*parts, worker.observability_config.collect_detailed_traces) == (None,) * 4


def test_what_cannot_be_otherwise_is_no_field():
    """It is not among what settings make, processes compare, and hooks are recorded to have changed."""
    config = VllmConfig(config_of(LLAMA), parallel_config=ParallelConfig(tensor_parallel_size=2))
    names = {field.name for part in (config, config.parallel_config) for field in dataclasses.fields(part)}

    assert not names & {"speculative_config", "pipeline_parallel_size", "enable_expert_parallel"}
    assert (config.parallel_config.world_size_across_dp, config.parallel_config.local_world_size) == (2, 2)
