"""What is registered inside ends with the block."""

from __future__ import annotations

import pytest

from vllm_ext.dispatch.bootstrap import load_general_plugins
from vllm_ext.registry.models import ModelRegistry
from vllm_ext.testing import restored_registries

CODE = """
from vllm_ext import ModelRegistry
def register():
    ModelRegistry.register_model("AcmeForCausalLM", "acme:Acme")
"""


@pytest.fixture
def acme(plugin_site):
    plugin_site.distribution("acme", {"vllm.general_plugins": ["acme = acme:register"]}, {"acme.py": CODE})


def test_it_is_forgotten_and_a_general_plugin_registers_it_anew(acme):
    for _ in range(2):
        with restored_registries():
            load_general_plugins()
            assert "AcmeForCausalLM" in ModelRegistry.get_supported_archs()
        assert "AcmeForCausalLM" not in ModelRegistry.get_supported_archs()


def test_it_is_forgotten_where_the_block_fails_too(acme):
    def fail():
        with restored_registries():
            load_general_plugins()
            raise OSError("in the test")

    with pytest.raises(OSError, match="in the test"):
        fail()

    assert "AcmeForCausalLM" not in ModelRegistry.get_supported_archs()
