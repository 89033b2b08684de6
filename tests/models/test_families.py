"""Every native family gives the logits of transformers, however the tokens are cut into steps, in each dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.device import driven_worker
from support.families import NATIVE, VOCAB_SIZE, copy_with_config, write_model
from transformers import AutoModelForCausalLM

from vllm_ext.errors import CheckpointError, UnsupportedModel

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.12, "float16": 0.02}
"""Of logits with a standard deviation near one; bfloat16 has 8 bits of mantissa, float16 11."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The model directory for an entry of ``NATIVE``."""
    directories: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in directories:
            directories[name] = write_model(tmp_path_factory.mktemp("family"), NATIVE[name], spread=0.1)
        return directories[name]

    return write


@torch.inference_mode()
def reference_logits(model: Path, token_ids: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits after each token, ``[tokens, vocabulary]``."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype)(torch.tensor([token_ids])).logits[0]


@pytest.mark.parametrize("name", NATIVE)
def test_chunks_and_decodes_give_the_logits_of_transformers(written, name):
    model = written(name)
    token_ids = torch.randint(VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = reference_logits(model, token_ids)
    assert 0.3 < expected.std() < 6

    with driven_worker(model, engine__dtype="float32", engine__block_size=4) as driver:
        driver.add("r", token_ids)
        done = 0
        for count in (13, 9, 1, 30, 1, 1, 5):
            done += count
            if done < len(token_ids):
                assert driver.step({"r": count})["r"] == []
        driver.step({"r": 5})

    torch.testing.assert_close(driver.logits[0], expected[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NATIVE)
def test_logits_in_each_dtype(written, name, dtype):
    model = written(name)
    token_ids = torch.randint(VOCAB_SIZE, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    expected = reference_logits(model, token_ids)[-1]

    with driven_worker(model, engine__dtype=dtype) as driver:
        driver.add("r", token_ids)
        driver.step({"r": 30})

    assert driver.logits.dtype is getattr(torch, dtype)
    scale = expected.std().item()
    torch.testing.assert_close(driver.logits[0].float() / scale, expected / scale, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "mistral",
            {"hidden_act": "relu"},
            "hidden_act 'relu' is not supported for MistralForCausalLM; supported: gelu, gelu_pytorch_tanh, silu",
        ),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "'chunked_attention'"),
        ("qwen3", {"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported; supported"),
    ],
)
def test_what_a_family_does_not_have_is_refused(written, tmp_path, name, changes, message):
    model = copy_with_config(written(name), tmp_path, changes)

    with pytest.raises(UnsupportedModel, match=message), driven_worker(model):
        pass


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral", {"sliding_window": -1}, "sliding_window is -1; it takes a whole number from 1 on"),
        ("qwen2", {"layer_types": ["full_attention"]}, "takes a list with a type for each of 3 layers"),
        ("qwen2", {"num_key_value_heads": 3}, "4 heads cannot share 3 KV heads evenly"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'; it takes a number above 0"),
    ],
)
def test_a_wrong_value_is_named(written, tmp_path, name, changes, message):
    model = copy_with_config(written(name), tmp_path, changes)

    with pytest.raises(CheckpointError, match=message), driven_worker(model):
        pass


def test_an_absent_key_means_what_it_means_to_transformers(written, tmp_path):
    model = written("mistral")
    (tmp_path / "absent").mkdir()
    (tmp_path / "null").mkdir()
    null = copy_with_config(model, tmp_path / "null", {"sliding_window": None})
    absent = copy_with_config(model, tmp_path / "absent", {}, without=["sliding_window"])
    windows = []
    for directory in (null, absent):
        with driven_worker(directory) as driver:
            windows.append({spec.sliding_window for spec in driver.worker.get_kv_cache_spec().values()})

    assert windows == [{None}, {4096}]


def test_a_window_that_is_null_is_none_where_layers_would_have_one(written, tmp_path):
    changes = {"layer_types": None, "use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}
    model = copy_with_config(written("qwen2"), tmp_path, changes)

    with driven_worker(model) as driver:
        assert {spec.sliding_window for spec in driver.worker.get_kv_cache_spec().values()} == {None}
