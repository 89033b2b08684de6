"""Methods of the user's on the worker of one engine, and of no other."""

from __future__ import annotations

import pytest

from vllm_ext import LLM
from vllm_ext.dispatch.worker_extension import extend_worker
from vllm_ext.errors import ConfigError, ContractError
from vllm_ext.worker.worker import Worker

MODULE = """
class Extension:
    def count_layers(self, times=1):
        return times * len(self.compilation_config.static_forward_context)

class Second:
    def second(self):
        return "second"

class Conflicting:
    def load_model(self): ...
    def shutdown(self): ...
    def mine(self): ...
"""


@pytest.fixture
def extension(plugins):
    plugins.distribution("extra", {}, {"extra_worker.py": MODULE})


def start(model, extension_cls, **settings):
    return LLM(model, platform="cpu", overrides={"worker.extension_cls": extension_cls, **settings})


def test_its_methods_are_there_for_collective_rpc(extension, random_llama):
    with start(random_llama, "extra_worker.Extension") as llm:
        assert llm.collective_rpc("count_layers") == [3]
        assert llm.collective_rpc("count_layers", kwargs={"times": 2}) == [6]
        assert llm.collective_rpc("count_layers", args=(3,)) == [9]


def test_two_engines_have_each_their_own_and_the_workers_class_stays_as_it_is(extension, random_llama):
    bases, names = Worker.__bases__, set(dir(Worker))

    with (
        start(random_llama, "extra_worker:Extension") as first,
        start(random_llama, "extra_worker.Second") as second,
        LLM(random_llama, platform="cpu") as plain,
    ):
        assert first.collective_rpc("count_layers") == [3]
        assert second.collective_rpc("second") == ["second"]
        for llm, absent in ((first, "second"), (second, "count_layers"), (plain, "count_layers")):
            with pytest.raises(ContractError, match=f"has no method '{absent}'"):
                llm.collective_rpc(absent)

    assert (Worker.__bases__, set(dir(Worker))) == (bases, names)


def test_attributes_that_both_have_are_named(extension, random_llama):
    with pytest.raises(
        ContractError,
        match=r"worker extension 'extra_worker\.Conflicting' of setting worker\.extension_cls and worker "
        r"'vllm_ext\.worker\.worker\.Worker' both have load_model, shutdown; an extension adds",
    ):
        start(random_llama, "extra_worker.Conflicting")


def test_a_platform_may_name_one_as_well(extension, random_llama, plugins):
    plugins.distribution(
        "npu",
        {"vllm.platform_plugins": ["npu = npu_p:register"]},
        {
            "npu_p.py": "from vllm_ext import PlatformEnum\nfrom vllm_ext.platforms.cpu import CpuPlatform\n"
            "def register(): return 'npu_p.Npu'\n"
            "class Npu(CpuPlatform):\n    _enum = PlatformEnum.OOT\n"
            "    @classmethod\n    def check_and_update_config(cls, vllm_config):\n"
            "        super().check_and_update_config(vllm_config)\n"
            "        vllm_config.parallel_config.worker_extension_cls = 'extra_worker.Second'\n"
        },
    )

    with LLM(random_llama, platform="npu") as llm:
        assert llm.collective_rpc("second") == ["second"]


@pytest.mark.parametrize(
    "path, message",
    [
        ("json.dumps", "worker extension class of setting worker.extension_cls: 'json.dumps' is not a class"),
        ("Extension", "'Extension' is not a class path"),
        ("extra_worker.Absent", "cannot be imported: AttributeError"),
    ],
)
def test_a_path_that_leads_to_no_class_is_an_error(extension, random_llama, path, message):
    with pytest.raises(ContractError, match=message):
        start(random_llama, path)


def test_classes_that_cannot_be_joined_are_named():
    with pytest.raises(
        ContractError, match=r"worker extension 'builtins.bool' of me and worker '.*' cannot be joined: "
    ):
        extend_worker(Worker, bool, "me")


def test_it_obeys_the_list_of_allowed_distributions(extension, random_llama):
    with pytest.raises(
        ConfigError, match="worker.extension_cls .* names 'extra_worker.Extension', but .*'extra_worker'"
    ):
        start(random_llama, "extra_worker.Extension", allow_distributions=["acme"])


def test_in_safe_mode_there_is_none(extension, random_llama, monkeypatch, caplog):
    monkeypatch.setenv("VLLM_EXT_SAFE_MODE", "1")

    with start(random_llama, "extra_worker.Extension") as llm:
        assert type(llm.collective_rpc(lambda worker: worker)[0]) is Worker
    assert "worker.extension_cls" in caplog.text
