"""An engine with int8 weights computes what the model does whose weights these stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.device import DrivenWorker, driven_worker, make_dispatcher
from support.families import ADAPTED, NATIVE, write_model
from support.quantized import copy_with_tensors, copy_with_weights, through_int8, to_int8
from support.ranks import assert_two_ranks_give_the_logits_of_one
from support.reference import assert_equal_tokens, greedy_reference, reference_logits

from vllm_ext import SamplingParams
from vllm_ext.dispatch.quantization import make_quant_config
from vllm_ext.errors import CheckpointError, ConfigError, PluginNotFound, UnsupportedModel

PROMPTS = [[5, 17, 300, 4], [9], list(range(20, 60))]
NUM_TOKENS = 16
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


def stored(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    whole, scale = to_int8(weight)
    return {name: whole, f"{name}_scale": scale}


@pytest.fixture
def int8_llama(random_llama, tmp_path) -> Path:
    """The random Llama as a checkpoint with int8 weights."""
    return copy_with_tensors(random_llama, tmp_path / "int8", stored, quantization_config={"quant_method": "int8"})


def tokens_of(llm) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


@pytest.fixture
def references(random_llama, tmp_path):
    """By transformers, in float32, with the weights that int8 stands for."""
    return greedy_reference(copy_with_weights(random_llama, tmp_path / "wide", through_int8), PROMPTS, NUM_TOKENS)


def test_a_checkpoint_is_quantized_while_it_is_read(make_cpu_llm, random_llama, references):
    llm = make_cpu_llm(random_llama, quantization="int8")

    assert_equal_tokens(tokens_of(llm), references)
    assert llm.dispatcher.vllm_config.quant_config.get_name() == "int8"


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_checkpoint_that_is_quantized_already_says_so_itself(make_cpu_llm, int8_llama, references, quantization):
    llm = make_cpu_llm(int8_llama, quantization=quantization)

    assert_equal_tokens(tokens_of(llm), references)
    assert llm.dispatcher.vllm_config.model_config.quantization == "int8"


def test_logits_are_those_of_the_weights_that_int8_stands_for(random_llama, tmp_path):
    wide = copy_with_weights(random_llama, tmp_path / "wide", through_int8)
    with driven_worker(random_llama, engine__quantization="int8", engine__dtype="float32") as driver:
        driver.add("r", PROMPTS[2])
        driver.step({"r": len(PROMPTS[2])})
        logits = driver.logits[-1]

    expected, plain = (reference_logits(each, PROMPTS[2])[-1] for each in (wide, random_llama))
    assert (expected - plain).abs().max() > 0.02, "int8 makes a difference"
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config", [NATIVE["qwen2"], ADAPTED["gemma2, soft caps"]], ids=["qwen2, tied", "adapted, tied"]
)
def test_other_models_have_int8_weights_too(make_cpu_llm, tmp_path, config):
    model = write_model(tmp_path / "model", config, spread=0.05)
    references = greedy_reference(copy_with_weights(model, tmp_path / "wide", through_int8), PROMPTS, NUM_TOKENS)

    llm = make_cpu_llm(model, quantization="int8")

    assert_equal_tokens(tokens_of(llm), references)


def bytes_of_layers(driver: DrivenWorker) -> int:
    """Bytes of everything that the dense layers hold, their linear methods' own tensors among it."""
    layers = [m for name, m in driver.worker.get_model().named_modules() if name.endswith("_proj")]
    held = [h for layer in layers for h in (layer._parameters, layer._buffers, vars(layer.linear_method))]
    tensors = [value for each in held for value in each.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_the_weights_take_a_quarter_of_the_memory(random_llama):
    num_bytes = []
    for quantization in ("int8", None):
        with driven_worker(random_llama, engine__dtype="float32", engine__quantization=quantization) as driver:
            num_bytes.append(bytes_of_layers(driver))

    assert num_bytes[1] > 0
    # A scale for each of the shortest rows, of 64 numbers, is what is above a quarter.
    assert num_bytes[0] < (1 / 4 + 1 / 64) * num_bytes[1] + 1


def test_the_same_weights_are_on_every_rank(random_llama, tmp_path):
    """Scales belong to whole rows, however these are split."""
    assert_two_ranks_give_the_logits_of_one(random_llama, tmp_path, engine__quantization="int8")


def test_dummy_weights_need_no_files_and_are_finite(random_llama):
    with driven_worker(random_llama, dummy_weights=True, engine__quantization="int8") as driver:
        driver.add("r", [1, 2, 3])
        driver.step({"r": 3})

        assert driver.logits.isfinite().all()
        assert driver.logits.std() > 0


def test_a_missing_scale_is_named(make_cpu_llm, int8_llama):
    path = int8_llama / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.k_proj.weight_scale"]
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.1\.self_attn\.k_proj\.weight_scale$"):
        make_cpu_llm(int8_llama)


def test_an_unknown_method_is_answered_with_what_exists(make_cpu_llm, random_llama):
    with pytest.raises(
        PluginNotFound,
        match=r"no quantization method 'int9' is registered \(did you mean 'int8'\?\), which engine.quantization "
        "names; registered: int8",
    ):
        make_cpu_llm(random_llama, quantization="int9")


@pytest.mark.parametrize("value", ["int8", {"bits": 8}, {"quant_method": 3}])
def test_a_checkpoint_has_to_name_its_method(make_cpu_llm, random_llama, tmp_path, value):
    model = copy_with_tensors(random_llama, tmp_path / "odd", stored, quantization_config=value)

    with pytest.raises(CheckpointError, match=r"quantization_config is .*; it takes an object with a quant_method"):
        make_cpu_llm(model)


def test_a_method_that_nobody_registered_is_refused_with_what_exists(make_cpu_llm, int8_llama):
    values = json.loads((int8_llama / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (int8_llama / "config.json").write_text(json.dumps(values))

    with pytest.raises(
        UnsupportedModel, match=r"is quantized \('gptq'\), and no such method is registered; registered: int8"
    ):
        make_cpu_llm(int8_llama)


def test_setting_and_checkpoint_must_agree(make_cpu_llm, int8_llama):
    with pytest.raises(ConfigError, match="engine.quantization is 'fp4', and the checkpoint is quantized with 'int8'"):
        make_cpu_llm(int8_llama, quantization="fp4")


def test_a_configuration_that_is_not_understood_names_its_file(make_cpu_llm, random_llama, tmp_path):
    config = {"quant_method": "int8", "bits": 4}
    model = copy_with_tensors(random_llama, tmp_path / "odd", stored, quantization_config=config)

    with pytest.raises(
        CheckpointError, match=r"config\.json: its configuration for quantization 'int8' .*: it has bits"
    ):
        make_cpu_llm(model)


def test_a_part_of_a_layer_cannot_be_left_out(make_cpu_llm, random_llama, tmp_path):
    config = {"quant_method": "int8", "ignored_layers": ["lm_head", "q_proj"]}
    model = copy_with_tensors(random_llama, tmp_path / "odd", stored, quantization_config=config)

    with pytest.raises(
        CheckpointError, match=r"quantization 'int8' and this model: ignored_layers leaves out .*q_proj"
    ):
        make_cpu_llm(model)


def test_layers_that_the_checkpoint_left_out_are_as_they_were(make_cpu_llm, random_llama, tmp_path):
    config = {"quant_method": "int8", "ignored_layers": ["lm_head", "o_proj", "gate_proj", "up_proj"]}

    def some(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        left_out = any(f"{layer}.weight" in name for layer in config["ignored_layers"])
        return {name: weight} if left_out else stored(name, weight)

    def wide(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: weight if weight is some(name, weight).get(name) else through_int8(weight)}

    references = greedy_reference(copy_with_tensors(random_llama, tmp_path / "wide", wide), PROMPTS, NUM_TOKENS)
    model = copy_with_tensors(random_llama, tmp_path / "some", some, quantization_config=config)

    assert_equal_tokens(tokens_of(make_cpu_llm(model)), references)


def test_a_model_without_a_layer_to_quantize_is_refused(make_cpu_llm, tmp_path):
    model = write_model(tmp_path / "model", ADAPTED["gpt2"])

    with pytest.raises(ConfigError, match="quantization 'int8' takes none of the layers of this model"):
        make_cpu_llm(model, quantization="int8")


def test_what_the_platform_does_not_support_is_refused(random_llama):
    dispatcher = make_dispatcher(random_llama)

    class Picky(type(dispatcher.platform)):
        @classmethod
        def verify_quantization(cls, quant):
            raise ConfigError(f"this device cannot do {quant}")

    with pytest.raises(ConfigError, match="this device cannot do int8"):
        make_quant_config("int8", dispatcher.vllm_config.model_config.hf_config, torch.float32, Picky())
