"""Conversations with a model: what it goes on from, and what it answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import vllm_ext
from vllm_ext import LLM, SamplingParams
from vllm_ext.errors import InvalidRequest, TokenizerError

DEMO_MODEL = Path(vllm_ext.__file__).parent / "assets" / "demo_model"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ASKED = [{"role": "user", "content": "Who was Mr. Darcy?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "He was "}]
GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """The model in the box, with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(DEMO_MODEL, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    with LLM(folder, dtype="float32", platform="cpu", kv_cache_memory=1 << 20) as made:
        yield made


def test_the_answer_is_what_the_model_says_after_the_text_that_the_template_makes(llm):
    (output,) = llm.chat(ASKED, GREEDY)

    tokenizer = llm.get_tokenizer()
    assert output.prompt == "<|endoftext|>user: Who was Mr. Darcy?\nassistant: "
    assert output.prompt_token_ids == tokenizer.encode(output.prompt, add_special_tokens=False)
    (same,) = llm.generate(output.prompt_token_ids, GREEDY)
    assert output.outputs[0].token_ids == same.outputs[0].token_ids


def test_several_conversations_are_answered_in_their_order_each_with_its_parameters(llm):
    params = [GREEDY, SamplingParams(temperature=0, max_tokens=2)]

    outputs = llm.chat([ASKED, [{"role": "user", "content": "And you?"}]], params)

    assert [len(output.outputs[0].token_ids) for output in outputs] == [6, 2]
    assert ["Darcy" in output.prompt for output in outputs] == [True, False]


def test_the_model_goes_on_with_the_last_message(llm):
    (output,) = llm.chat(ANSWERED, GREEDY, add_generation_prompt=False, continue_final_message=True)

    assert output.prompt.endswith("assistant: He was")


def test_a_template_that_is_given_and_its_variables(llm):
    (output,) = llm.chat(
        ASKED, GREEDY, chat_template="{{ style }}{{ tools | length }}", chat_template_kwargs={"style": "x"}, tools=[{}]
    )

    assert output.prompt == "x1"


def test_a_message_is_either_begun_or_gone_on_with(llm):
    with pytest.raises(InvalidRequest, match="add_generation_prompt and continue_final_message are both true"):
        llm.chat(ANSWERED, continue_final_message=True)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"chat_template": 5}, r"^chat_template is 5 \(int\); it takes a template of jinja2, as a text$"),
        ({"tools": {"type": "function"}}, r"^tools is {'type': 'function'} \(dict\); it takes a list of descriptions"),
        ({"chat_template_kwargs": ["style"]}, r"^chat_template_kwargs is \['style'\] \(list\); it takes a dictionary"),
    ],
)
def test_an_option_of_a_wrong_kind_is_said_of_the_option_and_not_of_the_template(llm, given, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        llm.chat(ASKED, GREEDY, **given)


def test_where_one_conversation_is_refused_none_is_started(llm):
    with pytest.raises(InvalidRequest, match=r"messages\[0\] has role None"):
        llm.chat([ASKED, [{"content": "x"}]], GREEDY)

    assert not llm.llm_engine.has_unfinished_requests()


def test_a_model_without_a_template_says_so(random_llama):
    with (
        LLM(random_llama, dtype="float32", platform="cpu", kv_cache_memory=1 << 20) as llm,
        pytest.raises(TokenizerError, match=r"has no chat template, .* Give one with chat_template="),
    ):
        llm.chat(ASKED)
