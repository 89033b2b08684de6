"""An error of a worker says in which plugin's code it was: the worker is often somebody else's."""

from __future__ import annotations

import pytest

from vllm_ext import LLM, SamplingParams
from vllm_ext.errors import EngineError

MODEL = """
from vllm_ext import ModelRegistry
from vllm_ext.models.llama import LlamaForCausalLM


class Fives(LlamaForCausalLM):
    def forward(self, input_ids, positions):
        if {condition}:
            self.load_tables({{}})
        return super().forward(input_ids, positions)

    def load_tables(self, tables):
        return tables["fives"]


def run():
    ModelRegistry.register_model("LlamaForCausalLM", Fives)
"""
FAILED = r"KeyError: 'fives' \(in Fives.load_tables\(\) of acme, of acme 0.1\)"


@pytest.fixture
def install(plugins):
    def install(condition: str) -> None:
        code = MODEL.format(condition=condition)
        plugins.distribution("acme", {"vllm.general_plugins": ["a = acme:run"]}, {"acme.py": code})

    return install


def test_at_the_start(install, random_llama):
    install("True")

    with pytest.raises(EngineError, match=rf"worker vllm_ext\..* of platform 'cpu' failed to prepare .*: {FAILED}"):
        LLM(random_llama)


def test_in_a_step(install, random_llama):
    install("len(input_ids) == 5")

    with LLM(random_llama) as llm:
        with pytest.raises(EngineError, match=rf"a step failed, which ended the 1 requests in flight: {FAILED}"):
            llm.generate([[1, 2, 3, 4, 5]], SamplingParams(max_tokens=1))
        assert llm.generate([[1, 2]], SamplingParams(max_tokens=1))[0].finished


def test_in_a_worker_process(install, random_llama):
    install("True")

    with pytest.raises(EngineError, match=rf"worker 0 \(PID \d+\) failed in .*: {FAILED}"):
        LLM(random_llama, executor="multiproc")


def test_an_error_of_no_plugin_has_nothing_added(install, random_llama):
    install("False")

    with LLM(random_llama) as llm, pytest.raises(EngineError) as caught:
        llm.collective_rpc(missing_argument)

    assert "(in " not in str(caught.value)


def missing_argument(worker, argument):
    """Called without the argument."""
