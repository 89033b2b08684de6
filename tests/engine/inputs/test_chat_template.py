"""Chat templates give the text that transformers makes of them; what they cannot be used for is said."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support.vocabularies import byte_level_tokenizer, write_tokenizer

from vllm_ext.engine.inputs.chat_template import ChatTemplates
from vllm_ext.engine.inputs.conversations import parse_conversation
from vllm_ext.errors import InvalidRequest, TokenizerError

MESSAGES = [
    {"role": "system", "content": " Be short. "},
    {"role": "user", "content": 'Is 1 < 2 & "so"?'},
    {"role": "assistant", "content": "Yes, é. "},
]
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"type": "object", "properties": {}}}}]
PLAIN = """\
{{ bos_token }}
{%- for message in messages %}
    <{{ message.role }}>{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""
UNTRIMMED = "{% for message in messages %}[{{ message.role }}]{{ message.content }}[end]\n{% endfor %}"
WITH_TOOLS = "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ messages[-1] | tojson }}"
WITH_LOOP_CONTROLS = """\
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {{ loop.index }}{{ message.content }}
    {% if message.role == 'assistant' %}{% break %}{% endif %}
{% endfor %}{{ nothing_of_the_kind }}{{ pad_token }}"""
WITH_GENERATION = """\
{% for message in messages %}
    {% generation %}
    {{ message.content }}{{ style | default('plain') }}
    {% endgeneration %}
{% endfor %}"""
WITH_NAMESPACE = """\
{% set ns = namespace(last=0) %}{% for message in messages %}{% set ns.last = loop.index0 %}{% endfor %}{{ ns.last }}"""
ALL = [PLAIN, UNTRIMMED, WITH_TOOLS, WITH_LOOP_CONTROLS, WITH_GENERATION, WITH_NAMESPACE]


def model_directory(folder: Path, **config: Any) -> Path:
    """With a tokenizer and what ``tokenizer_config.json`` has."""
    write_tokenizer(folder, byte_level_tokenizer())
    special: dict[str, Any] = {
        "bos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True},
        "eos_token": "<|end|>",
        "pad_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(special | config))
    return folder


def render(folder: Path, messages: Any = MESSAGES, **options: Any) -> str:
    return ChatTemplates(folder).render(parse_conversation(messages), **options)


def expected(folder: Path, messages: Any = MESSAGES, **options: Any) -> str:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


class TestEqualsTransformers:
    @pytest.mark.parametrize("template", ALL)
    @pytest.mark.parametrize("add_generation_prompt", [True, False])
    def test_whatever_templates_use(self, tmp_path, template, add_generation_prompt):
        folder = model_directory(tmp_path, chat_template=template)
        options = {"add_generation_prompt": add_generation_prompt, "tools": TOOLS}

        assert render(folder, **options) == expected(folder, **options)

    @pytest.mark.parametrize("template", [PLAIN, UNTRIMMED])
    @pytest.mark.parametrize("content", ["Yes, é. ", "Yes", " ", "so so", "<system>"])
    def test_a_last_message_that_is_gone_on_with(self, tmp_path, template, content):
        folder = model_directory(tmp_path, chat_template=template)
        messages = [*MESSAGES[:2], {"role": "assistant", "content": content}]
        options = {"add_generation_prompt": False, "continue_final_message": True}

        assert render(folder, messages, **options) == expected(folder, messages, **options)

    def test_further_variables(self, tmp_path):
        folder = model_directory(tmp_path, chat_template=WITH_GENERATION)

        text = render(folder, variables={"style": "bold"})

        assert text == expected(folder, style="bold")
        assert "bold" in text

    def test_a_template_in_a_file_of_its_own_comes_first(self, tmp_path):
        folder = model_directory(tmp_path, chat_template=UNTRIMMED)
        (folder / "chat_template.jinja").write_text(PLAIN)

        text = render(folder)

        assert text == expected(folder, add_generation_prompt=True)
        assert text.startswith("<|end|>")

    @pytest.mark.parametrize("in_files", [True, False])
    @pytest.mark.parametrize("tools", [TOOLS, None])
    def test_one_for_tools_is_used_where_there_are_some(self, tmp_path, tools, in_files):
        if in_files:
            folder = model_directory(tmp_path)
            (folder / "chat_template.jinja").write_text(PLAIN)
            (folder / "additional_chat_templates").mkdir()
            (folder / "additional_chat_templates" / "tool_use.jinja").write_text(WITH_TOOLS)
        else:
            named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": WITH_TOOLS}]
            folder = model_directory(tmp_path, chat_template=named)

        text = render(folder, tools=tools)

        assert text == expected(folder, tools=tools, add_generation_prompt=True)
        assert ("größe" in text) == (tools is not None)

    @pytest.mark.parametrize(
        ("config", "older", "has"),
        [
            ({"bos_token": None}, {"bos_token": "<M>"}, "<M>"),
            ({"bos_token": None}, {"bos_token": {"content": "<M>", "lstrip": False}}, "<M>"),
            ({"bos_token": "<C>"}, {"bos_token": "<M>"}, "<M>"),
            ({"bos_token": "<C>", "added_tokens_decoder": {}}, {"bos_token": "<M>"}, "<C>"),
            ({"extra_special_tokens": {"image_token": "<I>"}}, {}, "<I>"),
            ({"model_specific_special_tokens": {"image_token": "<I>"}}, {}, "<I>"),
        ],
        ids=str,
    )
    def test_special_tokens_from_wherever_checkpoints_have_them(self, tmp_path, config, older, has):
        folder = model_directory(tmp_path, chat_template="{{ bos_token }}{{ image_token }}", **config)
        (folder / "special_tokens_map.json").write_text(json.dumps(older))

        text = render(folder)

        assert text == expected(folder)
        assert has in text


def test_the_date_is_todays(tmp_path):
    folder = model_directory(tmp_path, chat_template="{{ strftime_now('%Y-%m') }}")
    before = datetime.now().astimezone().strftime("%Y-%m")

    assert render(folder) in (before, datetime.now().astimezone().strftime("%Y-%m"))


def test_a_template_that_is_given_takes_the_place_of_the_directorys(tmp_path):
    assert render(model_directory(tmp_path, chat_template=PLAIN), template="{{ bos_token }}!") == "<|end|>!"


class TestRefused:
    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("{{ raise_exception('roles have to alternate') }}", "for these messages: roles have to alternate"),
            ("{% for message in %}", "for these messages: Expected an expression"),
            ("{{ messages[0].content.name }}{{ messages[7].content.name }}", "has no element 7|has no attribute"),
            ("{{ messages[0]['content'] + 1 }}", "fails for these messages: TypeError: .*Has each what"),
        ],
    )
    def test_the_reason_is_the_templates(self, tmp_path, template, reason):
        with pytest.raises(InvalidRequest, match=f"the chat template of '.*' .*({reason})"):
            render(model_directory(tmp_path, chat_template=template))

    @pytest.mark.parametrize(
        "template",
        [
            "{{ messages.__class__.__mro__[1].__subclasses__() }}",
            "{{ raise_exception.__globals__.keys() }}",
            "{{ strftime_now.__code__.co_consts }}",
            "{{ messages.clear() }}",
            "{{ messages[0].update(role='user') }}",
        ],
    )
    def test_a_template_reaches_neither_python_nor_the_callers_messages(self, tmp_path, template):
        messages = [dict(message) for message in MESSAGES]

        with pytest.raises(InvalidRequest, match="unsafe|not safely callable"):
            render(model_directory(tmp_path, chat_template=template), messages)

        assert messages == MESSAGES

    def test_a_template_that_leaves_the_last_message_out_cannot_let_it_be_gone_on_with(self, tmp_path):
        folder = model_directory(tmp_path, chat_template="{{ messages[0].content }}")

        with pytest.raises(InvalidRequest, match="continue_final_message: .* leaves the last message out"):
            render(folder, add_generation_prompt=False, continue_final_message=True)

    def test_a_character_of_the_mark_in_an_earlier_message_is_not_the_last_ones(self, tmp_path):
        folder = model_directory(tmp_path, chat_template="{{ messages[0].content }}")
        messages = [{"role": "user", "content": "\uf8ff Mac"}, {"role": "assistant", "content": "A Mac"}]

        with pytest.raises(InvalidRequest, match="leaves the last message out"):
            render(folder, messages, add_generation_prompt=False, continue_final_message=True)

    def test_a_directory_without_one_is_told_with_where_it_was_looked_for(self, tmp_path):
        with pytest.raises(TokenizerError, match=r"no chat template, neither in chat_template\.jinja nor as") as e:
            render(model_directory(tmp_path))

        assert str(tmp_path) in str(e.value)

    def test_a_directory_with_others_names_them(self, tmp_path):
        named = [{"name": "rag", "template": PLAIN}]

        with pytest.raises(TokenizerError, match=r"no chat template, .*; it has: rag\."):
            render(model_directory(tmp_path, chat_template=named))

    @pytest.mark.parametrize("template", [7, ["x"], [{"name": "default"}], {"default": "x"}])
    def test_what_is_no_template_is_named_with_its_file(self, tmp_path, template):
        with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: chat_template is neither a text nor"):
            render(model_directory(tmp_path, chat_template=template))

    def test_a_file_that_is_no_text_is_named(self, tmp_path):
        (model_directory(tmp_path) / "chat_template.jinja").write_bytes(b"\xff\xfe")

        with pytest.raises(TokenizerError, match=r"chat template .*chat_template\.jinja cannot be read"):
            render(tmp_path)
