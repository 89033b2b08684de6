"""What a model directory must hold, and what is said when it does not."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.device import driven_worker
from support.ranks import TESTS
from support.tools import load_tool

from vllm_ext import ModelRegistry
from vllm_ext.errors import CheckpointError, ContractError, PluginNotFound, UnsupportedModel
from vllm_ext.models.llama import LlamaForCausalLM

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(random_llama: Path, tmp_path: Path) -> Path:
    """A copy of the random model that a test may spoil."""
    return shutil.copytree(random_llama, tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model in two files with an index."""
    tool = load_tool("make_checkpoint")
    shape = tool.Shape(64, 2, 4, 2, 16, 96, 600, 256)
    tool.write_checkpoint(tmp_path / "sharded", shape, shards=2)
    return tmp_path / "sharded"


def edit_tensors(model: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / WEIGHTS)
    edit(tensors)
    save_file(tensors, model / WEIGHTS)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def loading_error(model: Path, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught, driven_worker(model):
        pass
    return str(caught.value)


def test_shards_and_a_single_file_give_the_same_model(sharded, tmp_path):
    single = shutil.copytree(sharded, tmp_path / "single", ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {name: tensor for shard in sharded.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    save_file(tensors, single / WEIGHTS)
    logits = []
    for directory in (sharded, single):
        with driven_worker(directory) as driver:
            driver.add("r", [1, 2, 3])
            driver.step({"r": 3})
            logits.append(driver.logits)

    assert len(list(sharded.glob("*.safetensors"))) == 2
    assert torch.equal(*logits)


def test_a_missing_tensor_is_named_as_in_the_checkpoint(model):
    edit_tensors(model, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))

    text = loading_error(model)

    assert str(model / WEIGHTS) in text
    assert text.endswith("missing: model.layers.1.self_attn.k_proj.weight")


def test_all_missing_tensors_are_named(model):
    def edit(tensors):
        del tensors["model.norm.weight"], tensors["lm_head.weight"]

    edit_tensors(model, edit)

    assert loading_error(model).endswith("missing: lm_head.weight, model.norm.weight")


def test_an_unexpected_tensor_is_named(model):
    edit_tensors(model, lambda tensors: tensors.update({"model.layers.0.mlp.gate_prj.weight": torch.ones(2, 2)}))

    text = loading_error(model)

    assert f"{model / WEIGHTS}: tensor 'model.layers.0.mlp.gate_prj.weight': the model has no parameter" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.norm.weight", "[64]"),
        ("model.embed_tokens.weight", "[600, 64]"),
        # Parts of fused weights.
        ("model.layers.2.self_attn.v_proj.weight", "[32, 64]"),
        ("model.layers.0.mlp.up_proj.weight", "[96, 64]"),
    ],
)
def test_a_wrong_shape_is_reported_with_both(model, name, expected):
    edit_tensors(model, lambda tensors: tensors.update({name: torch.ones(5, 3)}))

    text = loading_error(model)

    assert f"tensor '{name}'" in text
    assert "its shape is [5, 3]" in text
    assert f"the model has {expected}" in text


@pytest.mark.parametrize("size", [0, 6, 100, 200_000])
def test_a_truncated_file_is_named(model, size):
    with (model / WEIGHTS).open("r+b") as file:
        file.truncate(size)

    text = loading_error(model)

    assert text.startswith(str(model / WEIGHTS))
    assert "cannot be read as safetensors" in text


def test_a_shard_that_the_index_names_must_exist(sharded):
    shard = max(sharded.glob("*.safetensors"))
    shard.unlink()

    text = loading_error(sharded)

    assert f"lists files that do not exist: {shard.name}" in text


def test_a_tensor_that_the_index_names_must_be_in_its_shard(sharded):
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=weight_map | {"extra.weight": min(weight_map.values())})

    text = loading_error(sharded)

    assert "tensor 'extra.weight': cannot be read as safetensors" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none_is_refused(sharded, content):
    index = sharded / "model.safetensors.index.json"
    index.write_text(content)

    assert f"{index} is not an index" in loading_error(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_advice(model, name):
    (model / WEIGHTS).rename(model / name)

    text = loading_error(model)

    assert name in text
    assert "Convert them to safetensors" in text


def test_a_directory_without_weights_says_what_it_holds(model):
    (model / WEIGHTS).unlink()

    text = loading_error(model)

    assert "neither model.safetensors nor model.safetensors.index.json exists" in text
    assert "it holds: config.json" in text


def test_quantized_checkpoints_are_refused(model):
    edit_json(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})

    assert "quantized ('gptq')" in loading_error(model, UnsupportedModel)


def test_a_model_class_without_the_contracts_methods_is_refused(model):
    class Half(torch.nn.Module):
        def __init__(self, vllm_config, prefix=""):
            super().__init__()

        def forward(self, input_ids, positions):
            return input_ids

    ModelRegistry.register_model("LlamaForCausalLM", Half)

    text = loading_error(model, ContractError)

    assert "lacks embed_input_ids, compute_logits, load_weights" in text


def test_a_model_that_does_not_say_what_it_has_filled_is_warned_about(model, caplog):
    class Silent(LlamaForCausalLM):
        def load_weights(self, weights):
            super().load_weights(weights)

    ModelRegistry.register_model("LlamaForCausalLM", Silent)

    with driven_worker(model) as driver:
        filled = driver.worker.get_model().model.norm.weight
        assert torch.equal(filled, load_file(model / WEIGHTS)["model.norm.weight"])

    assert "Silent returned None, so that nobody knows what the checkpoint lacks" in caplog.text


def test_weights_are_converted_to_the_dtype_of_the_engine(model):
    with driven_worker(model, engine__dtype="bfloat16") as driver:
        dtypes = {param.dtype for param in driver.worker.get_model().parameters()}

    assert dtypes == {torch.bfloat16}


def test_the_default_dtype_of_torch_is_left_as_it_was(model):
    with driven_worker(model, engine__dtype="bfloat16"):
        assert torch.get_default_dtype() is torch.float32


def test_dummy_weights_need_no_files(model):
    (model / WEIGHTS).unlink()

    with driven_worker(model, dummy_weights=True) as driver:
        driver.add("r", [1, 2, 3])
        driver.step({"r": 3})

        assert driver.logits.isfinite().all()
        assert driver.logits.std() > 0


def peak_of_loading(model: Path, *settings: str) -> int:
    """By how many bytes a process grows at most while it loads ``model``."""
    script = TESTS / "worker" / "loading" / "peak_of_loading.py"
    environ = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, script, model, *settings]
    return int(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("tie", [False, True])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, tie):
    tool = load_tool("make_checkpoint")
    shape = tool.Shape(1024, 8, 16, 8, 64, 2816, 2000, 256, tie)
    num_bytes = 4 * tool.write_checkpoint(tmp_path / "model", shape)

    assert num_bytes > 300e6
    assert num_bytes < peak_of_loading(tmp_path / "model") < 1.3 * num_bytes


@pytest.mark.slow
def test_weights_that_become_int8_are_never_there_in_full(tmp_path):
    tool = load_tool("make_checkpoint")
    num_bytes = 4 * tool.write_checkpoint(tmp_path / "model", tool.Shape(1024, 8, 16, 8, 64, 2816, 2000, 256, True))

    assert num_bytes > 300e6
    assert num_bytes / 4 < peak_of_loading(tmp_path / "model", "engine__quantization=int8") < 0.45 * num_bytes


def test_an_unknown_load_format_is_answered_with_what_exists(model):
    with pytest.raises(PluginNotFound) as caught, driven_worker(model, engine__load_format="safetensor"):
        pass

    assert str(caught.value) == (
        "no load format 'safetensor' is registered (did you mean 'safetensors'?), which engine.load_format names; "
        "registered: auto, dummy, safetensors. A general plugin can register one"
    )


@pytest.mark.parametrize("load_format", ["auto", "safetensors"])
def test_weights_are_read_from_safetensors_unless_told_otherwise(model, load_format):
    (model / WEIGHTS).unlink()

    with pytest.raises(CheckpointError, match="no weights in"), driven_worker(model, engine__load_format=load_format):
        pass


def test_random_weights_can_be_asked_for_and_are_the_same_for_the_same_seed(model):
    (model / WEIGHTS).unlink()
    logits = []
    for seed in (1, 1, 2):
        with driven_worker(model, engine__load_format="dummy", engine__seed=seed) as driver:
            driver.add("r", [1, 2, 3])
            driver.step({"r": 3})
            logits.append(driver.logits)

    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


class BuiltFromConfig(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)


class GivenCaches(LlamaForCausalLM):
    def forward(self, input_ids, positions, kv_caches, attn_metadata):
        return super().forward(input_ids, positions)


class WithoutPositions(LlamaForCausalLM):
    def forward(self, input_ids):
        return super().forward(input_ids, None)


class GivenSamplingMetadata(LlamaForCausalLM):
    def compute_logits(self, hidden_states, sampling_metadata):
        return super().compute_logits(hidden_states)


@pytest.mark.parametrize(
    "model_cls, complaint",
    [
        (
            BuiltFromConfig,
            "cannot be built: its constructor does not take 'vllm_config', and wants 'config' besides. It is called "
            "with the keywords vllm_config",
        ),
        (
            GivenCaches,
            "defines forward(self, input_ids, positions, kv_caches, attn_metadata), which is called as "
            "forward(input_ids, positions): missing a required argument: 'kv_caches'",
        ),
        (
            WithoutPositions,
            "defines forward(self, input_ids), which is called as forward(input_ids, positions): too many positional "
            "arguments",
        ),
        (
            GivenSamplingMetadata,
            "defines compute_logits(self, hidden_states, sampling_metadata), which is called as "
            "compute_logits(hidden_states): missing a required argument: 'sampling_metadata'",
        ),
    ],
)
def test_a_model_class_that_is_called_otherwise_is_refused_before_it_is_built(random_llama, model_cls, complaint):
    ModelRegistry.register_model("LlamaForCausalLM", model_cls)

    with pytest.raises(ContractError) as caught, driven_worker(random_llama):
        pytest.fail("it started")

    assert f"{__name__}.{model_cls.__name__} {complaint}" in str(caught.value)


def without_caches(forward):
    """Lets a method for an older vLLM be called as today."""

    @functools.wraps(forward)
    def adapted(self, input_ids, positions):
        return forward(self, input_ids, positions, None, None)

    return adapted


def test_what_a_decorator_made_of_a_method_counts(random_llama):
    class Adapted(GivenCaches):
        forward = without_caches(GivenCaches.forward)

    ModelRegistry.register_model("LlamaForCausalLM", Adapted)

    with driven_worker(random_llama) as driver:
        driver.add("r", [1, 2, 3])
        driver.step({"r": 3})

        assert driver.logits.shape[0] == 1
