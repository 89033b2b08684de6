"""A model directory's config.json: found, read, or refused with the path."""

import copy

import pytest

from vllm_ext.dispatch.hf_config import DEMO_MODEL, read_hf_config
from vllm_ext.errors import CheckpointError


def test_keys_become_attributes():
    config = read_hf_config(DEMO_MODEL)

    assert config.architectures == ["LlamaForCausalLM"]
    assert config.get("no_such_key", 7) == 7
    with pytest.raises(AttributeError, match="config.json has no key 'no_such_key'"):
        _ = config.no_such_key


def test_an_attribute_that_is_set_is_a_key_that_is_set():
    config = read_hf_config(DEMO_MODEL)

    config.sliding_window = 5

    assert (config.sliding_window, config.get("sliding_window"), config.to_dict()["sliding_window"]) == (5, 5, 5)


def test_a_copy_is_its_own():
    config = read_hf_config(DEMO_MODEL)
    other = copy.deepcopy(config)
    other.architectures.append("Another")

    assert (config.architectures, other.source) == (["LlamaForCausalLM"], config.source)


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match="/nowhere' does not exist. Give the path of a local .* not downloaded"):
        read_hf_config(tmp_path / "nowhere")


def test_a_directory_that_cannot_be_looked_into(tmp_path):
    with pytest.raises(CheckpointError, match="model directory '/.*' cannot be looked into: File name too long"):
        read_hf_config(tmp_path / ("x" * 300))


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "model.bin").touch()

    with pytest.raises(CheckpointError, match="is a file, not a directory"):
        read_hf_config(tmp_path / "model.bin")


def test_a_directory_without_config_lists_what_it_holds(tmp_path):
    (tmp_path / "weights.pt").touch()

    with pytest.raises(CheckpointError, match=r"no config\.json in model directory .*; it holds: weights\.pt"):
        read_hf_config(tmp_path)


@pytest.mark.parametrize("text, message", [("{", "cannot be read as JSON"), ("[]", "holds a JSON list, not an object")])
def test_a_config_that_is_no_json_object(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(CheckpointError, match=message):
        read_hf_config(tmp_path)
