"""Messages in the forms that programs have them, and what is said of others."""

import pytest

from vllm_ext.engine.inputs.conversations import parse_conversation, split_conversations
from vllm_ext.errors import InvalidRequest

HELLO = {"role": "user", "content": "Hello"}


def test_one_conversation_or_several():
    assert split_conversations([HELLO]) == [[HELLO]]
    assert split_conversations([[HELLO], [HELLO, HELLO]]) == [[HELLO], [HELLO, HELLO]]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Hello", "Hello"),
        (None, None),
        ([], ""),
        ([{"type": "text", "text": "Hello"}, {"text": "you"}, "there"], "Hello\nyou\nthere"),
        ([{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "b"}], "a\nb"),
    ],
)
def test_parts_become_lines_of_one_text(content, text):
    message = {"role": "user", "content": content, "name": "me"}

    assert parse_conversation([message]) == [{"role": "user", "content": text, "name": "me"}]


def test_arguments_of_tool_calls_are_read_and_the_callers_message_stays_as_it_is():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}
    message = {"role": "assistant", "tool_calls": [call, {"function": {"name": "g", "arguments": {"y": 2}}}]}

    (parsed,) = parse_conversation([message])

    assert [each["function"]["arguments"] for each in parsed["tool_calls"]] == [{"x": [1, "é"]}, {"y": 2}]
    assert call["function"]["arguments"] == '{"x": [1, "é"]}'


@pytest.mark.parametrize("messages", [[], "Hello", None, HELLO, 7])
def test_what_is_no_list_of_messages_is_told_what_one_is(messages):
    with pytest.raises(InvalidRequest, match="messages is .*; a conversation is a list of messages, each a dictionary"):
        split_conversations(messages)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], r"a conversation is \[\] \(list\); a conversation is a list of messages"),
        ("Hello", r"a conversation is 'Hello' \(str\)"),
        ([HELLO, "Hello"], r"messages\[1\] is 'Hello' \(str\); a conversation is a list"),
        ([{"content": "Hello"}], r"messages\[0\] has role None; it takes a text, such as 'user'"),
        ([{"role": 1, "content": "Hello"}], r"messages\[0\] has role 1"),
        ([{"role": "user", "content": 5}], r"messages\[0\] has content 5 \(int\); it takes a text, or a list of parts"),
        ([{"role": "user", "content": [5]}], r"messages\[0\] has the part 5 \(int\); it takes a text or"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\] has a part whose text is None"),
        (
            [HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            r"messages\[1\] has a part of type 'image_url'; the engine takes text alone",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            r"messages\[0\]\['tool_calls'\] has arguments that are no JSON: '\{'",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}],
            r"messages\[0\]\['tool_calls'\] has arguments that are nested too deeply: '\[\[",
        ),
        ([{"role": "assistant", "tool_calls": 5}], r"messages\[0\] has tool_calls 5 \(int\); it takes a list"),
    ],
)
def test_what_a_message_cannot_be_is_named_with_its_place(messages, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        parse_conversation(messages)
