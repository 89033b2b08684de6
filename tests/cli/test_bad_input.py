"""Bad input of every kind that a user can give: the message says what to do, and the exit code says what it was.

2 wrong usage or settings, a missing or ambiguous name, a model that cannot be served; 3 no platform; 1 a plugin that
was named and failed.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_ext.cli.main import main

PLATFORMS = "vllm.platform_plugins"
GENERAL = "vllm.general_plugins"

PLATFORM_CLASS = """
from vllm_ext.platforms.cpu import CpuPlatform
from vllm_ext import PlatformEnum
class Npu(CpuPlatform):
    _enum = PlatformEnum.OOT
"""


@pytest.fixture
def run(capsys):
    """Run ``vllm-ext run`` with the arguments; returns exit code and stderr, and asserts that stdout is empty."""

    def call(*arguments):
        code = main(["run", "--max-tokens", "2", *map(str, arguments)])
        captured = capsys.readouterr()
        assert (captured.out == "") is (code != 0)
        return code, captured.err

    return call


def install_platform(plugins, name, body, platform_class=PLATFORM_CLASS):
    module = f"{name}_plugin"
    files = {f"{module}/__init__.py": f"def register():\n    {body}\n", f"{module}/platform.py": platform_class}
    plugins.distribution(f"{name}_dist", {PLATFORMS: [f"{name} = {module}:register"]}, files)


def working(name):
    return f"return '{name}_plugin.platform.Npu'"


# Names and settings ---------------------------------------------------------------------------------------------------


def test_an_unknown_driver(run):
    code, err = run("--platform", "npu")

    assert code == 2
    assert "no platform plugin 'npu' is installed, which platform.driver (command line (--platform)) names" in err
    assert "installed: cpu" in err


def test_an_unknown_key_in_a_file_is_named_with_file_line_and_the_closest_key(run, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("platform:\n  driver: cpu\nengine:\n  max_nm_seqs: 4\nplatfrom: {}\n")

    code, err = run("--config-file", file)

    assert code == 2
    assert f"file {file} line 4: engine.max_nm_seqs: unknown key (did you mean 'max_num_seqs'?)" in err
    assert f"file {file} line 5: platfrom: unknown key (did you mean 'platform'?)" in err


def test_a_missing_config_file(run):
    code, err = run("--config-file", "/nowhere/vllm-ext.yaml")

    assert code == 2
    assert "settings file /nowhere/vllm-ext.yaml cannot be read: No such file or directory" in err


def test_an_unknown_variable(run, monkeypatch):
    monkeypatch.setenv("VLLM_EXT_PLATFORM__DRIVR", "cpu")

    code, err = run()

    assert code == 2
    assert "environment (VLLM_EXT_PLATFORM__DRIVR): no setting has this variable" in err
    assert "did you mean 'VLLM_EXT_PLATFORM__DRIVER'?" in err


def test_a_name_in_vllm_plugins_that_nothing_has(run, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "npu")

    code, err = run()

    assert code == 2
    assert "no plugin 'npu' is installed, which VLLM_PLUGINS names" in err


# Platforms ------------------------------------------------------------------------------------------------------------


def test_a_named_platform_that_declines_without_a_reason(run, plugins):
    install_platform(plugins, "npu", "return None")

    code, err = run("--platform", "npu")

    assert code == 3
    assert "platform plugin 'npu' of npu-dist 0.1 declined: it returned None" in err
    assert "A list permits that: platform: {driver: [npu, cpu]}" in err


def test_a_named_platform_that_declines_with_a_reason(run, plugins):
    install_platform(plugins, "npu", "from vllm_ext import Unavailable; raise Unavailable('no NPU in this machine')")

    code, err = run("--platform", "npu")

    assert code == 3
    assert "no NPU in this machine" in err


def test_a_named_platform_that_raises_shows_the_plugins_own_traceback(run, plugins):
    install_platform(plugins, "npu", "raise OSError('libnpu.so: cannot open')")

    code, err = run("--platform", "npu")

    assert code == 3
    assert "OSError: libnpu.so: cannot open" in err
    assert "npu_plugin/__init__.py" in err


def test_a_list_of_platforms_is_the_permission_to_fall_back(run, plugins):
    install_platform(plugins, "npu", "return None")

    assert run("--platform", "npu,cpu")[0] == 0


def test_a_missing_name_in_a_list_is_still_an_error(run):
    code, err = run("--platform", "npu,cpu")

    assert code == 2
    assert "no platform plugin 'npu' is installed" in err


def test_two_active_platforms_print_the_line_for_the_settings(run, plugins):
    for name in ("npu", "tpu"):
        install_platform(plugins, name, working(name))

    code, err = run()

    assert code == 2
    assert "platform: {driver: npu}" in err
    assert "platform: {driver: tpu}" in err


def test_a_platform_that_fails_beside_auto_is_a_warning_with_cause_and_replacement(run, plugins):
    install_platform(plugins, "npu", "raise OSError('libnpu.so: cannot open')")

    code, err = run()

    assert code == 0
    assert err.count("OSError: libnpu.so: cannot open") == 1
    assert "'npu'" in err
    assert "'cpu'" in err


@pytest.mark.parametrize(
    "body, message",
    [
        ("return 3", "expected a class path 'package.module.Class', got 3"),
        ("return 'npu_plugin.platform.Absent'", "'npu_plugin.platform.Absent' cannot be imported: AttributeError"),
        ("return 'json.JSONDecoder'", "is not a subclass of vllm_ext.contracts.platform.Platform"),
    ],
)
def test_a_named_platform_that_answers_with_something_else(run, plugins, body, message):
    install_platform(plugins, "npu", body)

    code, err = run("--platform", "npu")

    assert code == 3
    assert message in err


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "assert 0", "raise KeyError('x')"])
def test_a_platform_whose_hook_breaks_off_is_an_error_with_its_traceback(run, plugins, body):
    hook = f"    @classmethod\n    def check_and_update_config(cls, vllm_config):\n        {body}\n"
    install_platform(plugins, "npu", working("npu"), PLATFORM_CLASS + hook)

    code, err = run("--platform", "npu")

    assert code == 1
    assert "npu_plugin.platform.Npu) failed: " in err
    assert "in check_and_update_config" in err


def test_a_platform_whose_hook_refuses_the_configuration_is_wrong_input_with_its_text(run, plugins):
    hook = (
        "    @classmethod\n    def check_and_update_config(cls, vllm_config):\n"
        "        raise ValueError('block_size has to be 32 here')\n"
    )
    install_platform(plugins, "npu", working("npu"), PLATFORM_CLASS + hook)

    code, err = run("--platform", "npu")

    assert code == 2
    who = "platform 'npu' of npu-dist 0.1 (npu_plugin.platform.Npu)"
    assert f"{who} refuses the configuration: block_size has to be 32 here\n" in err
    assert "Traceback" not in err

    code, err = run("--platform", "npu", "--debug")

    assert code == 2
    assert "in check_and_update_config" in err


LEAKY_HOOK = """
    @classmethod
    def check_and_update_config(cls, vllm_config):
        raise OSError("cannot log in with hunter2")
"""


@pytest.mark.parametrize("body", ["raise OSError('cannot log in with hunter2')", working("npu")])
@pytest.mark.parametrize("options", [[], ["--debug"], ["--log-file"]], ids=lambda options: "".join(options))
def test_a_secret_that_a_plugin_repeats_in_what_it_raises_is_in_no_output(plugins, capsys, tmp_path, body, options):
    log = tmp_path / "log"
    install_platform(plugins, "npu", body, PLATFORM_CLASS + LEAKY_HOOK)

    options = [*options, str(log)] if "--log-file" in options else options
    code = main([*options, "run", "--platform", "npu", "--set", "options.npu.token=hunter2"])

    written = capsys.readouterr().err + (log.read_text() if log.exists() else "")
    assert code in (1, 3)
    assert written.count("Traceback") >= 1
    assert "OSError: cannot log in with ********" in written
    assert "hunter2" not in written


def test_a_worker_that_exits_does_not_end_the_process_as_if_all_were_well(run, plugins):
    worker = """
from vllm_ext.worker.worker import Worker
class Quitter(Worker):
    def execute_model(self, scheduler_output):
        raise SystemExit(0)
"""
    plugins.distribution("quitting", {}, {"quitting_worker.py": worker})

    code, err = run("--set", "worker.cls=quitting_worker.Quitter")

    assert code == 1
    assert "a step failed, which ended the 1 requests in flight: SystemExit: 0" in err
    assert "in execute_model" in err


# General plugins ------------------------------------------------------------------------------------------------------


def test_a_general_plugin_that_exits_at_import_is_reported_and_the_rest_goes_on(run, plugins):
    plugins.distribution("quitter", {GENERAL: ["q = quitter:run"]}, {"quitter.py": "import sys; sys.exit(7)"})

    code, err = run()

    assert code == 0
    assert "general plugin 'q' of quitter 0.1 is left out, since it failed: SystemExit: 7" in err


def test_a_general_plugin_that_was_named_has_to_work(run, plugins):
    plugins.distribution("quitter", {GENERAL: ["q = quitter:run"]}, {"quitter.py": "import sys; sys.exit(7)"})

    code, err = run("--set", "plugins.general.enabled=[q]")

    assert code == 1
    assert "'q' of quitter 0.1" in err
    assert "SystemExit: 7" in err


def test_what_a_plugin_prints_does_not_spoil_the_result(plugins, capsys):
    plugins.distribution("loud", {GENERAL: ["l = loud:run"]}, {"loud.py": "def run(): print('I am loud')"})

    assert main(["run", "--json", "--max-tokens", "2"]) == 0

    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 1
    assert "I am loud" in captured.err


def test_an_exception_that_cannot_be_printed_is_reported_all_the_same(run, plugins):
    source = "class Odd(Exception):\n    def __str__(self): raise RuntimeError\ndef run(): raise Odd\n"
    plugins.distribution("odd", {GENERAL: ["o = odd:run"]}, {"odd.py": source})

    code, err = run()

    assert code == 0
    assert "since it failed: Odd: its message cannot be read" in err


@pytest.mark.parametrize("element", ["junk", "+"])
def test_an_element_of_custom_ops_of_another_form(run, element):
    code, err = run("--set", f"custom_ops=['{element}']")

    assert code == 2
    assert f"custom_ops holds '{element}'; an element is all, none, +name or -name" in err


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(random_llama, tmp_path):
    """A copy of a good model directory, to be damaged."""
    return shutil.copytree(random_llama, tmp_path / "model")


def change_tensors(model, change):
    file = model / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_an_undamaged_model_runs(run, model):
    assert run("--model", model)[0] == 0


def test_an_unsupported_architecture(run, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLLM"]}))

    code, err = run("--model", model)

    assert code == 2
    assert "'LlamaForCausalLLM' (did you mean 'LlamaForCausalLM'?). Supported: BertForMaskedLM" in err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'; it takes a list of names"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings is 'x'; it takes a whole number from 1 on"),
        ({"max_position_embeddings": -3}, "max_position_embeddings is -3; it takes"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it takes a whole number"),
        ({"hidden_size": None}, "hidden_size is missing; it takes a whole number"),
        ({"vocab_size": "512"}, "vocab_size is '512'; it takes a whole number"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "abc"}}, "rope_theta is 'abc'; it takes a number"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "low_freq_factor of the llama3 rope is missing"),
        ({"rope_parameters": [1]}, "rope parameters are [1]; they take an object"),
    ],
)
def test_a_config_with_a_value_of_the_wrong_kind(run, model, change, message):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))

    code, err = run("--model", model)

    assert code == 2
    assert f"{model}/config.json: {message}" in err


def test_a_missing_tensor(run, model):
    change_tensors(model, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))

    code, err = run("--model", model)

    assert code == 2
    assert f"{model}/model.safetensors does not hold all tensors of the model" in err
    assert "missing: model.layers.1.mlp.up_proj.weight" in err


def test_a_tensor_of_a_wrong_shape(run, model):
    change_tensors(model, lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))

    code, err = run("--model", model)

    assert code == 2
    assert f"{model}/model.safetensors: tensor 'model.norm.weight'" in err
    assert "7" in err
    assert "64" in err


def test_a_tensor_of_whole_numbers(run, model):
    change_tensors(model, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))

    code, err = run("--model", model)

    assert code == 2
    assert f"{model}/model.safetensors: tensor 'model.norm.weight'" in err
    assert "its dtype is torch.int8; supported: torch.float32" in err


@pytest.mark.parametrize("shard", ["../model.safetensors", "/tmp/model.safetensors", "a/b.safetensors"])
def test_a_shard_outside_of_the_directory(run, model, shard):
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))

    code, err = run("--model", model)

    assert code == 2
    assert f"names {shard!r}, which is no file of the model directory" in err


def test_a_tensor_that_the_model_does_not_know(run, model):
    change_tensors(model, lambda tensors: tensors.update({"model.extra.weight": torch.ones(7)}))

    code, err = run("--model", model)

    assert code == 2
    assert f"{model}/model.safetensors: tensor 'model.extra.weight'" in err


def test_a_truncated_file(run, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])

    code, err = run("--model", model)

    assert code == 2
    assert f"{file}: cannot be read as safetensors" in err


def test_a_pickled_checkpoint_is_refused(run, model):
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")

    code, err = run("--model", model)

    assert code == 2
    assert "pytorch_model.bin are pickled, and loading a pickle runs code. Convert them to safetensors" in err


def test_a_missing_shard(run, model):
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    code, err = run("--model", model)

    assert code == 2
    assert "lists files that do not exist: model-00001-of-00002.safetensors" in err


def test_a_missing_tokenizer(run, model):
    (model / "tokenizer.json").unlink()

    code, err = run("--model", model)

    assert code == 2
    assert f"no tokenizer.json in {str(model)!r}" in err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_to_a_file_that_is_gone(run, model, name):
    (model / name).unlink()
    (model / name).symlink_to("../../blobs/0f3a")

    code, err = run("--model", model)

    assert code == 2
    assert f"{name} (a link to '../../blobs/0f3a', which does not exist)" in err


def test_a_damaged_tokenizer(run, model):
    (model / "tokenizer.json").write_text("{")

    code, err = run("--model", model)

    assert code == 2
    assert "tokenizer.json" in err
    assert "cannot be read" in err


def test_no_message_comes_with_a_traceback_unless_asked_for(run, model):
    (model / "tokenizer.json").unlink()

    assert "Traceback" not in run("--model", model)[1]


def test_a_settings_folder_that_cannot_be_looked_into(run, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/" + "a" * 300)

    code, err = run()

    assert code == 2
    assert "cannot be looked for: File name too long. Correct HOME or XDG_CONFIG_HOME, or name a file" in err


# Faults that nobody foresaw -------------------------------------------------------------------------------------------


def test_an_error_without_a_text_is_named(run, monkeypatch):
    def out_of_memory(*arguments, **keywords):
        raise MemoryError

    monkeypatch.setattr("vllm_ext.cli.base.load_config", out_of_memory)
    code, err = run()

    assert (code, err) == (1, "ERROR: MemoryError\n")
