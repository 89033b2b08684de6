"""ModelRegistry: lazy, checked, and loud about replacements."""

import logging
import sys

import pytest
from torch import nn

from vllm_ext import ModelRegistry
from vllm_ext.errors import RegistrationError, UnsupportedModel
from vllm_ext.registry.owners import loading
from vllm_ext.registry.scope import Scope, use_scope


class Model(nn.Module):
    pass


def test_a_class_path_is_not_imported_when_it_is_registered():
    ModelRegistry.register_model("Lazy", "a_module_that_does_not_exist:Model")

    assert "Lazy" in ModelRegistry.get_supported_archs()


def test_a_class_path_is_imported_when_a_model_needs_it(tmp_path, monkeypatch):
    (tmp_path / "lazy_model_module.py").write_text("from torch import nn\nclass Model(nn.Module): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    ModelRegistry.register_model("Lazy", "lazy_model_module:Model")
    assert "lazy_model_module" not in sys.modules

    model_cls, arch = ModelRegistry.resolve_model_cls(["Unknown", "Lazy"])

    assert (model_cls.__name__, arch) == ("Model", "Lazy")


def test_a_class_is_taken_as_it_is():
    ModelRegistry.register_model("Direct", Model)

    assert ModelRegistry.resolve_model_cls(["Direct"]) == (Model, "Direct")


def test_a_plugin_asks_for_a_class_as_it_asks_vllm():
    ModelRegistry.register_model("Asked", Model)

    assert ModelRegistry.resolve_model_cls("Asked", model_config=object()) == (Model, "Asked")


@pytest.mark.parametrize("path", ["module.Class", "module:", ":Class", "a:b:c", "a b:C", ""])
def test_a_class_path_of_another_form_is_refused(path):
    with pytest.raises(RegistrationError, match="is not of the form 'package.module:Class'"):
        ModelRegistry.register_model("Bad", path)


@pytest.mark.parametrize("model_cls", [int, 3, None, Model()])
def test_what_is_no_module_class_is_refused(model_cls):
    with pytest.raises(RegistrationError, match="neither a torch.nn.Module subclass nor a string"):
        ModelRegistry.register_model("Bad", model_cls)


def test_an_architecture_that_is_no_name_is_refused():
    with pytest.raises(RegistrationError, match="model architecture 3 is not a name"):
        ModelRegistry.register_model(3, Model)


def test_a_replacement_names_both_owners(caplog):
    with loading("first", "dist-one"):
        ModelRegistry.register_model("Shared", "one:Model")

    with caplog.at_level(logging.WARNING), loading("second", "dist-two"):
        ModelRegistry.register_model("Shared", "two:Model")

    assert caplog.messages == [
        "model architecture 'Shared': plugin 'second' of dist-two replaces the registration of "
        "plugin 'first' of dist-one"
    ]


def test_the_same_owner_registers_again_without_a_word(caplog):
    for target in ("one:Model", "two:Model"):
        with loading("plugin", "dist"):
            ModelRegistry.register_model("Mine", target)

    assert caplog.messages == []


def test_replacing_an_in_tree_model_is_reported(caplog):
    with loading("mine", "dist"):
        ModelRegistry.register_model("LlamaForCausalLM", "mine:Llama")

    assert "replaces the registration of vllm_ext itself" in caplog.text


def test_an_unknown_architecture_is_answered_with_what_exists():
    with pytest.raises(
        UnsupportedModel,
        match=r"'LlamaForCausalLn' \(did you mean 'LlamaForCausalLM'\?\)\. Supported: .*LlamaForCausalLM.*register_",
    ):
        ModelRegistry.resolve_model_cls(["LlamaForCausalLn"])


def test_an_unknown_architecture_may_be_that_of_a_platform_that_is_not_used():
    with (
        use_scope(Scope.of("vllm-ext", ["acme", "vllm-ext"])),
        pytest.raises(UnsupportedModel, match="; those of acme are left out, since their platform is not the"),
    ):
        ModelRegistry.resolve_model_cls(["AcmeForCausalLM"])


def test_a_model_that_cannot_be_imported_names_its_owner_and_the_cause():
    with loading("mine", "dist"):
        ModelRegistry.register_model("Broken", "a_module_that_does_not_exist:Model")

    with pytest.raises(UnsupportedModel, match=r"plugin 'mine' of dist.*No module named 'a_module_that"):
        ModelRegistry.resolve_model_cls(["Broken"])


def test_a_failed_import_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    ModelRegistry.register_model("Late", "late_model_module:Model")
    with pytest.raises(UnsupportedModel):
        ModelRegistry.resolve_model_cls(["Late"])

    (tmp_path / "late_model_module.py").write_text("from torch import nn\nclass Model(nn.Module): ...\n")
    sys.path_importer_cache.clear()

    assert ModelRegistry.resolve_model_cls(["Late"])[1] == "Late"


def test_after_a_failed_import_another_registration_is_what_counts():
    with loading("mine", "dist"):
        ModelRegistry.register_model("Mended", "a_module_that_does_not_exist:Model")
        with pytest.raises(UnsupportedModel):
            ModelRegistry.resolve_model_cls(["Mended"])
        ModelRegistry.register_model("Mended", Model)

    assert ModelRegistry.resolve_model_cls(["Mended"]) == (Model, "Mended")


def test_a_module_that_was_mended_is_imported_again_after_the_same_registration(tmp_path, monkeypatch):
    path = tmp_path / "mended_model_module.py"
    path.write_text("raise ImportError('half an upload')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        ModelRegistry.register_model("Mended", "mended_model_module:Model")
        with pytest.raises(UnsupportedModel, match="half an upload"):
            ModelRegistry.resolve_model_cls(["Mended"])

    path.write_text("from torch import nn\nclass Model(nn.Module): ...\n")
    ModelRegistry.register_model("Mended", "mended_model_module:Model")

    assert ModelRegistry.resolve_model_cls(["Mended"])[0].__name__ == "Model"


def test_a_refused_registration_leaves_what_was_there():
    ModelRegistry.register_model("Kept", Model)

    with pytest.raises(RegistrationError):
        ModelRegistry.register_model("Kept", "nowhere")

    assert ModelRegistry.resolve_model_cls(["Kept"]) == (Model, "Kept")


def test_refusals_are_of_the_types_that_vllm_raises():
    for arch, model_cls, kind in ((3, Model, TypeError), ("A", "no-colon", ValueError), ("A", int, TypeError)):
        with pytest.raises(kind):
            ModelRegistry.register_model(arch, model_cls)


def test_plugins_ask_whether_an_architecture_is_there():
    assert "LlamaForCausalLM" in ModelRegistry.get_supported_archs()
    assert "MyLlava" not in ModelRegistry.get_supported_archs()


def test_a_model_without_architectures_is_refused():
    with pytest.raises(UnsupportedModel, match="no model is registered for the architecture of this model: none named"):
        ModelRegistry.resolve_model_cls([])
