"""Models of transformers under our model contract: what they are made of, how they load, and which are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.device import driven_worker
from support.families import ADAPTED, NUM_LAYERS, VOCAB_SIZE, copy_with_config, write_model
from support.vocabularies import byte_level_tokenizer, write_tokenizer

from vllm_ext.contracts.kv_cache import FullAttentionSpec
from vllm_ext.errors import CheckpointError, UnsupportedModel
from vllm_ext.models.adapter_linear import PlatformLinear

GPT2, GEMMA3, MIXTRAL = "gpt2", "gemma3, window in two layers", "mixtral, four experts"
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.12, "float16": 0.02}
"""In standard deviations of the logits; bfloat16 has 8 bits of mantissa, float16 11."""
TOKEN_IDS = torch.randint(VOCAB_SIZE, (30,), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The model directory for an entry of ``ADAPTED``."""
    directories: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in directories:
            directories[name] = write_model(tmp_path_factory.mktemp("adapted"), ADAPTED[name], spread=0.1)
        return directories[name]

    return write


@torch.inference_mode()
def reference_logits(model: Path) -> torch.Tensor:
    """Logits after the last of ``TOKEN_IDS``, in float32."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return reference(torch.tensor([TOKEN_IDS])).logits[0, -1]


def our_logits(model: Path, **settings) -> torch.Tensor:
    with driven_worker(model, **settings) as driver:
        driver.add("r", TOKEN_IDS)
        driver.step({"r": 13})
        driver.step({"r": 17})
        return driver.logits[0]


def refusal(model: Path, **settings) -> str:
    with pytest.raises(UnsupportedModel) as caught, driven_worker(model, **settings):
        pass
    return str(caught.value)


def write_config(directory: Path, architecture: str, config: transformers.PretrainedConfig) -> Path:
    """A model directory without weights: what is refused before they are needed."""
    (directory / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": [architecture]}))
    write_tokenizer(directory, byte_level_tokenizer(VOCAB_SIZE))
    return directory


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ADAPTED)
def test_logits_in_each_dtype(written, name, dtype):
    model = written(name)
    expected = reference_logits(model)

    logits = our_logits(model, engine__dtype=dtype)

    assert logits.dtype is getattr(torch, dtype) or logits.dtype is torch.float32
    scale = expected.std().item()
    torch.testing.assert_close(logits.float() / scale, expected / scale, atol=TOLERANCE[dtype], rtol=0)


def test_each_layer_reports_the_cache_it_needs(written):
    with driven_worker(written(GEMMA3), engine__block_size=4) as driver:
        spec = driver.worker.get_kv_cache_spec()

    windows = [9, None, 9]
    assert spec == {
        f"model.layers.{i}.self_attn.attn": FullAttentionSpec(4, 2, 16, torch.float32, windows[i])
        for i in range(NUM_LAYERS)
    }


def test_the_platform_multiplies(written):
    with driven_worker(written(GEMMA3)) as driver:
        model = driver.worker.get_model()
        dense = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]

        assert len(dense) == NUM_LAYERS * 7 + 1
        assert all(isinstance(module, PlatformLinear) for module in dense)


@pytest.mark.parametrize("known_as", ["without the prefix of the body", "with buffers of old versions"])
def test_names_that_published_checkpoints_have(written, tmp_path, known_as):
    model = copy_with_config(written(GPT2), tmp_path, {})
    tensors = load_file(model / "model.safetensors")
    if known_as.startswith("without"):
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    else:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
        tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors")

    torch.testing.assert_close(our_logits(model), reference_logits(written(GPT2)), atol=1e-4, rtol=1e-4)


def test_tied_weights_that_differ_are_refused(written, tmp_path):
    model = copy_with_config(written(GPT2), tmp_path, {})
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors")

    with pytest.raises(CheckpointError, match="config.json says that the two are one"):
        our_logits(model)


def test_tied_weights_are_loaded_once_under_either_name(written, tmp_path):
    model = copy_with_config(written(GPT2), tmp_path, {})
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors")

    torch.testing.assert_close(our_logits(model), reference_logits(written(GPT2)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.bias"), "missing: transformer.h.1.mlp.c_fc.bias"),
        (lambda tensors: tensors.update({"transformer.h.0.mlp.c_fk.bias": torch.ones(2)}), "no parameter for it"),
        (
            lambda tensors: tensors.update({"transformer.ln_f.bias": torch.ones(2)}),
            r"its shape is \[2\]; the model has",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(written, tmp_path, edit, message):
    model = copy_with_config(written(GPT2), tmp_path, {})
    tensors = load_file(model / "model.safetensors")
    edit(tensors)
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors")

    with pytest.raises(CheckpointError, match=message), driven_worker(model):
        pass


def test_experts_are_stacked_in_the_order_of_their_numbers(written, tmp_path):
    config = ADAPTED[MIXTRAL] | {"num_local_experts": 12, "num_hidden_layers": 1}
    model = write_model(tmp_path, config, spread=0.1)

    names = load_file(model / "model.safetensors")
    assert any("experts.11." in name for name in names), "stored one by one, '11' sorts before '2'"
    torch.testing.assert_close(our_logits(model), reference_logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("MambaForCausalLM", transformers.MambaConfig(), "MambaForCausalLM keeps a state other than keys and values"),
        ("JambaForCausalLM", transformers.JambaConfig(), "JambaForCausalLM keeps a state other than keys and values"),
        ("BloomForCausalLM", transformers.BloomConfig(), "does not let the attention of BloomForCausalLM be replaced"),
        ("GPT2LMHeadModel", transformers.OPTConfig(), "its model_type 'opt' stands for OPTForCausalLM there"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_built(tmp_path, architecture, config, message):
    model = write_config(tmp_path, architecture, config)

    text = refusal(model)

    assert text.startswith(f"{model}/config.json: {architecture} cannot run through transformers: ")
    assert message in text


SMALL = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        (
            "GptOssForCausalLM",
            transformers.GptOssConfig(**SMALL, num_key_value_heads=2, head_dim=16, intermediate_size=32),
            "its GptOssAttention adds s_aux to attention, which backends do not compute",
        ),
        (
            "Llama4ForCausalLM",
            transformers.Llama4TextConfig(**SMALL, num_key_value_heads=2, head_dim=16, intermediate_size=32),
            "its attention is neither causal over all tokens nor over a sliding window",
        ),
        (
            "BertLMHeadModel",
            transformers.BertConfig(**SMALL, intermediate_size=32),
            "its attention is neither causal over all tokens nor over a sliding window",
        ),
    ],
)
def test_attention_that_backends_do_not_compute_is_refused(tmp_path, architecture, config, message):
    assert message in refusal(write_config(tmp_path, architecture, config))


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("T5ForConditionalGeneration", "an encoder-decoder"),
        ("LlavaForConditionalGeneration", "a model that reads images"),
        ("WhisperForConditionalGeneration", "a model that reads speech"),
        ("DebertaForMaskedLM", "an encoder"),
    ],
)
def test_other_kinds_of_models_are_named(written, tmp_path, architecture, kind):
    model = copy_with_config(written(GPT2), tmp_path, {"architectures": [architecture]})

    assert f"transformers knows {architecture} as {kind}; only decoder-only language models run" in refusal(model)


def test_an_architecture_that_nobody_knows(written, tmp_path):
    model = copy_with_config(written(GPT2), tmp_path, {"architectures": ["NobodyForCausalLM"]})

    text = refusal(model)

    assert "no model is registered for the architecture of this model: 'NobodyForCausalLM'" in text
    assert f"transformers {transformers.__version__}, which runs most others, does not know it" in text


@pytest.mark.parametrize("max_model_len", [16, 17])
def test_frequencies_that_depend_on_the_longest_request_of_a_step_are_refused(written, tmp_path, max_model_len):
    rope = {"rope_type": "longrope", "long_factor": [4.0] * 8, "short_factor": [1.0] * 8, "rope_theta": 1e4}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 16}
    model = copy_with_config(written("phi3, window"), tmp_path, changes)

    if max_model_len == 16:
        with driven_worker(model, engine__max_model_len=16):
            pass
    else:
        text = refusal(model, engine__max_model_len=17)
        assert "set engine.max_model_len to at most 16" in text


def test_code_of_a_model_directory_is_never_run(written, tmp_path):
    marker = tmp_path / "it-ran"
    model = copy_with_config(
        written(GPT2),
        tmp_path,
        {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}},
    )
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")

    our_logits(model)

    assert not marker.exists()


WITHOUT = """
import sys
sys.modules["transformers"] = None
from vllm_ext import ModelRegistry
from vllm_ext.errors import UnsupportedModel
try:
    ModelRegistry.resolve_model_cls(["GPT2LMHeadModel"])
except UnsupportedModel as error:
    print(error)
print(ModelRegistry.resolve_model_cls(["Qwen3ForCausalLM"])[0].__name__)
"""


def test_without_the_library_the_error_names_the_extra():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)

    error, native = done.stdout.splitlines()
    assert "no model is registered for the architecture of this model: 'GPT2LMHeadModel'" in error
    assert "run through the library transformers, an extra: pip install 'vllm-ext[transformers]'" in error
    assert native == "Qwen3ForCausalLM"


def test_the_library_is_not_imported_for_a_native_model():
    program = (
        "import sys; from vllm_ext import LLM, SamplingParams\n"
        "with LLM() as llm: llm.generate('It was', SamplingParams(temperature=0, max_tokens=2))\n"
        "assert 'transformers' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
