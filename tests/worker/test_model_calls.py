"""A model has to give hidden states, and logits for every row of a step that gets a token."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from support.device import driven_worker

from vllm_ext import LLM, SamplingParams
from vllm_ext.errors import ContractError
from vllm_ext.models.llama import LlamaForCausalLM
from vllm_ext.registry.models import ModelRegistry


def assert_refused_at_start(model_dir: Path, model_cls: type[LlamaForCausalLM], method: str, complaint: str) -> None:
    ModelRegistry.register_model("LlamaForCausalLM", model_cls)
    starting = driven_worker(model_dir)

    text = rf"{method}\(\) of model {__name__}.{model_cls.__name__} {complaint}"
    with pytest.raises(ContractError, match=text), starting:
        pytest.fail("it started")


VOCAB = 600


class WithoutLogits(LlamaForCausalLM):
    def compute_logits(self, hidden_states):
        super().compute_logits(hidden_states)


class WithTooManyLogits(LlamaForCausalLM):
    def compute_logits(self, hidden_states):
        return super().compute_logits(hidden_states).repeat(2, 1)


class WithPartOfTheVocabulary(LlamaForCausalLM):
    def compute_logits(self, hidden_states):
        return super().compute_logits(hidden_states).chunk(2, dim=1)[0]


class WithAPaddedVocabulary(LlamaForCausalLM):
    def compute_logits(self, hidden_states):
        return torch.nn.functional.pad(super().compute_logits(hidden_states), (0, 64))


class WithAnotherDimension(LlamaForCausalLM):
    def compute_logits(self, hidden_states):
        return super().compute_logits(hidden_states)[:, None]


@pytest.mark.parametrize(
    ("model_cls", "returned"),
    [
        (WithoutLogits, "None"),
        (WithTooManyLogits, rf"a tensor \[2, {VOCAB}\]"),
        (WithPartOfTheVocabulary, rf"a tensor \[1, {VOCAB // 2}\]"),
        (WithAPaddedVocabulary, rf"a tensor \[1, {VOCAB + 64}\]"),
        (WithAnotherDimension, rf"a tensor \[1, 1, {VOCAB}\]"),
    ],
)
def test_a_model_that_gives_other_logits_is_named_before_the_first_step(random_llama, model_cls, returned):
    complaint = (
        rf"returned {returned} for 1 rows of hidden states; it has to give the logits of all 1 rows on every rank, "
        rf"one for each of the {VOCAB} tokens that config\.json has as vocab_size: all parts of a head that is split"
    )

    assert_refused_at_start(random_llama, model_cls, "compute_logits", complaint)


class WithoutHiddenStates(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        super().forward(*args, **kwargs)


class WithMoreThanHiddenStates(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs), None


@pytest.mark.parametrize(
    ("model_cls", "returned"), [(WithoutHiddenStates, "None"), (WithMoreThanHiddenStates, r"\(tensor\(.*")]
)
def test_a_model_whose_forward_gives_no_tensor_is_named_before_the_first_step(random_llama, model_cls, returned):
    complaint = rf"returned {returned}; it has to return the hidden states, one tensor \[tokens, hidden size\]"

    assert_refused_at_start(random_llama, model_cls, "forward", complaint)


class WithOneRow(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)[:1]


def test_hidden_states_of_other_tokens_than_those_of_the_step_are_refused(random_llama):
    ModelRegistry.register_model("LlamaForCausalLM", WithOneRow)
    complaint = r"WithOneRow returned a tensor \[1, \d+\], and not 2 rows; it has to return the hidden states"

    with driven_worker(random_llama) as driver:
        driver.add("a", [1, 2, 3])
        driver.add("b", [1, 2])
        with pytest.raises(ContractError, match=complaint):
            driver.step({"a": 3, "b": 2})


class AsOfVllm(LlamaForCausalLM):
    """Its forward has vLLM's arguments, and its base an extension of them."""

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        return super().forward(input_ids, positions)


def test_a_subclass_whose_forward_is_as_of_vllm_has_the_same_tokens(random_llama):
    prompts, params = [[1, 2, 3], [4, 5, 6, 7]], SamplingParams(temperature=0, max_tokens=4)
    with LLM(random_llama) as llm:
        expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    ModelRegistry.register_model("LlamaForCausalLM", AsOfVllm)

    with LLM(random_llama) as llm:
        assert [output.outputs[0].token_ids for output in llm.generate(prompts, params)] == expected


def without_rows(self, input_ids, positions):
    return self.model(input_ids, positions)


def called_as_by_vllm(forward):
    @functools.wraps(forward)
    def decorated(self, input_ids, positions):
        return forward(self, input_ids, positions)

    return decorated


def passing_on(forward):
    @functools.wraps(forward)
    def decorated(self, *args, **kwargs):
        return forward(self, *args, **kwargs)

    return decorated


@pytest.mark.parametrize(
    "forward",
    [
        called_as_by_vllm(LlamaForCausalLM.forward),
        passing_on(LlamaForCausalLM.forward),
        called_as_by_vllm(without_rows),
        passing_on(without_rows),
    ],
)
def test_a_decorated_forward_is_asked_for_rows_only_where_it_can_give_them(random_llama, forward):
    logits = []
    for model_cls in (LlamaForCausalLM, type("Decorated", (LlamaForCausalLM,), {"forward": forward})):
        ModelRegistry.register_model("LlamaForCausalLM", model_cls)
        with driven_worker(random_llama) as driver:
            driver.add("r", [1, 2, 3])
            driver.step({"r": 3})
            logits.append(driver.logits)

    torch.testing.assert_close(*logits)
