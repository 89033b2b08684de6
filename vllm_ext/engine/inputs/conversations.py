"""The forms in which messages may be given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from vllm_ext.engine.inputs.prompts import list_advice, shown
from vllm_ext.errors import InvalidRequest

Message: TypeAlias = Mapping[str, Any]
"""``role``, ``content``, and whatever else the model's chat template reads, such as ``tool_calls``."""

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_ACCEPTED = "a conversation is a list of messages, each a dictionary with 'role' and 'content'"


def split_conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[Any]:
    """One conversation or several, as a list. The messages are not looked at."""
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidRequest(
            f"messages is {shown(messages)}; {_ACCEPTED}; several conversations are a list of these"
            f"{list_advice('messages', messages)}"
        )
    return [messages] if isinstance(messages[0], Mapping) else list(messages)


def parse_conversation(messages: Any) -> list[dict[str, Any]]:
    """Copies of the messages as chat templates read them: contents are texts, arguments of tool calls no JSON.

    Raises:
        InvalidRequest: they have another form, or parts that are no text.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidRequest(f"a conversation is {shown(messages)}; {_ACCEPTED}")
    return [_parse_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _parse_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} is {shown(message)}; {_ACCEPTED}")
    if not isinstance(message.get("role"), str):
        raise InvalidRequest(f"{where} has role {message.get('role')!r}; it takes a text, such as 'user'")
    parsed = {**message}
    if "content" in message:
        parsed["content"] = _text_of(message["content"], where)
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list | tuple):
            raise InvalidRequest(f"{where} has tool_calls {shown(calls)}; it takes a list of calls")
        parsed["tool_calls"] = [_parse_tool_call(call, f"{where}['tool_calls']") for call in calls]
    return parsed


def _text_of(content: Any, where: str) -> str | None:
    """The text of a message; of parts in their order, a line each."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidRequest(f"{where} has content {shown(content)}; it takes a text, or a list of parts with 'text'")
    return "\n".join(_text_of_part(part, where) for part in content)


def _text_of_part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind is None:
        raise InvalidRequest(f"{where} has the part {shown(part)}; it takes a text or {{'type': 'text', 'text': text}}")
    if kind not in _TEXT_PARTS:
        raise InvalidRequest(f"{where} has a part of type {kind!r}; the engine takes text alone")
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{where} has a part whose text is {shown(text)}")
    return text


def _parse_tool_call(call: Any, where: str) -> Any:
    """``call`` with its arguments as a dictionary, which OpenAI's form has as JSON."""
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments, str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(arguments or "{}")}}
    except RecursionError as error:
        raise InvalidRequest(f"{where} has arguments that are nested too deeply: {shown(arguments)}") from error
    except ValueError as error:
        raise InvalidRequest(f"{where} has arguments that are no JSON: {shown(arguments)}: {error}") from error
