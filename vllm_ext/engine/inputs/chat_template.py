"""From the messages of a conversation to the text that a model goes on from, by a chat template of its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm_ext.dispatch.hf_config import read_json_object
from vllm_ext.errors import InvalidRequest, TokenizerError, listing

_FILE, _FOLDER, _CONFIG = "chat_template.jinja", "additional_chat_templates", "tokenizer_config.json"
_DEFAULT, _FOR_TOOLS = "default", "tool_use"
_OLDER_CONFIG = "special_tokens_map.json"
_NAMED_TOKENS = ("extra_special_tokens", "model_specific_special_tokens")
_MARK = "\uf8ff\ue000\uf8ff "
"""Stands at the end of a message while a template is rendered: private characters, of which a text may have some (the
first is Apple's sign), but not these in a row. A template that trims what is said takes the space."""


class ChatTemplates:
    """The chat templates of a model directory, read when the first is needed.

    A template is code of whoever made the directory: it runs in jinja2's sandbox, where it can neither reach into
    Python nor change what it is given.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, with the special tokens that the model wants.

        Args:
            messages: as :func:`vllm_ext.engine.inputs.conversations.parse_conversation` gives them.
            template: in place of the directory's.
            add_generation_prompt: end with what comes before the model's next message.
            continue_final_message: end within the last message, which the model goes on with.
            variables: others of the template.

        Raises:
            TokenizerError: the directory has no template, or a file with one cannot be read.
            CheckpointError: a JSON file of the tokenizer is damaged.
            InvalidRequest: the template cannot be read, refuses the messages, or does not contain the last one.
        """
        source, text = ("chat_template", template) if template is not None else self._choose(with_tools=bool(tools))
        if continue_final_message:
            *before, last = messages
            messages = [*before, {**last, "content": (last.get("content") or "") + _MARK}]
        try:
            rendered = _compile(text).render(
                self._special_tokens
                | {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
                | dict(variables or {})
            )
        except TemplateError as error:
            raise InvalidRequest(f"{source} cannot be used for these messages: {error}") from error
        except Exception as error:  # a template is code, and may raise anything
            raise InvalidRequest(
                f"{source} fails for these messages: {type(error).__name__}: {error}. Has each what the template "
                "reads, such as 'role' and 'content'?"
            ) from error
        return _cut_at_mark(rendered, source) if continue_final_message else rendered

    def _choose(self, *, with_tools: bool) -> tuple[str, str]:
        """Where the template is from, and its text."""
        found = self._templates
        name = _FOR_TOOLS if with_tools and _FOR_TOOLS in found else _DEFAULT
        if name not in found:
            others = f"; it has: {listing(found)}" if found else ""
            raise TokenizerError(
                f"model directory {str(self._directory)!r} has no chat template, neither in {_FILE} nor as "
                f"'chat_template' in {_CONFIG}{others}. Give one with chat_template=..., put one "
                "there, or use generate()"
            )
        return f"the chat template of {str(self._directory)!r}", found[name]

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self._directory / _CONFIG
        return read_json_object(path) if path.is_file() else {}

    @cached_property
    def _templates(self) -> dict[str, str]:
        """By name. What is in a file of its own comes before what the configuration has."""
        given: Any = self._config.get("chat_template")
        named = given if isinstance(given, list) else [] if given is None else [{"name": _DEFAULT, "template": given}]
        try:
            templates = {entry["name"]: entry["template"] for entry in named}
        except (KeyError, TypeError):
            templates = {_DEFAULT: None}
        if not all(isinstance(text, str) for text in templates.values()):
            path = self._directory / _CONFIG
            raise TokenizerError(f"{path}: chat_template is neither a text nor a list of texts with names")
        paths = {path.stem: path for path in (self._directory / _FOLDER).glob("*.jinja")}
        if (own := self._directory / _FILE).is_file():
            paths[_DEFAULT] = own
        return templates | {name: _read(path) for name, path in paths.items()}

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        """By the name that templates have for each, such as ``bos_token``; those that transformers finds."""
        given = dict(self._config)
        for key in _NAMED_TOKENS:
            if isinstance(named := self._config.get(key), dict):
                given |= named
        # A configuration that has no tokens by their ids leaves the names to the older file, which then comes first.
        if "added_tokens_decoder" not in self._config and (path := self._directory / _OLDER_CONFIG).is_file():
            given |= read_json_object(path)
        found = {}
        for name, value in given.items():
            token = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(token, str):
                found[name] = token
        return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"chat template {path} cannot be read: {error}") from error


def _cut_at_mark(text: str, source: str) -> str:
    before, mark, _ = text.rpartition(_MARK)
    if mark:
        return before
    before, mark, _ = text.rpartition(_MARK.strip())
    if not mark:
        raise InvalidRequest(f"continue_final_message: {source} leaves the last message out")
    return before.rstrip()


@lru_cache(maxsize=16)
def _compile(text: str) -> Template:
    return _ENVIRONMENT.from_string(text)


class _GenerationBlock(Extension):
    """``{% generation %}``, which marks what an assistant has said for those who train: here it is what is in it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it for objects

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tag and its end."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, **options: Any) -> str:
    """As it is: jinja2's own filter writes for pages of HTML."""
    return json.dumps(value, **{"ensure_ascii": False} | options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for: the names and the treatment of white space that transformers has."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


_ENVIRONMENT = _environment()
