"""``POST /v1/chat/completions``, and what tokens messages become."""

from __future__ import annotations

import pytest
from support.server import running_server, with_template

from vllm_ext import LLM, SamplingParams

PATH = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "Who was Mr. Darcy?"}]
GREEDY = {"messages": ASKED, "temperature": 0, "max_tokens": 8}
PARAMS = SamplingParams(temperature=0, max_tokens=8, logprobs=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return with_template(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def server(model):
    with running_server(model=model, server__served_model_name="talker") as running:
        yield running


@pytest.fixture(scope="module")
def output(model):
    """What the engine answers by itself."""
    with LLM(model, dtype="float32", platform="cpu", kv_cache_memory=1 << 22) as llm:
        (output,) = llm.chat(ASKED, PARAMS)
    return output


def answered(server, **body):
    answer = server.post(PATH, GREEDY | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_is_what_the_engine_says(server, output):
    answer = answered(server, model="talker")

    assert (answer["object"], answer["model"]) == ("chat.completion", "talker")
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": output.outputs[0].text}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert "delta" not in choice
    assert answer["usage"]["prompt_tokens"] == len(output.prompt_token_ids)
    assert answer["usage"]["completion_tokens"] == 8


def test_the_events_of_a_stream_say_who_speaks_and_add_up_to_the_same_text(server, output):
    first, *events, last = server.events(PATH, GREEDY | {"stream_options": {"include_usage": True}})

    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == output.outputs[0].text
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert "message" not in first["choices"][0]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 8)


def test_several_answers_to_one_question_each_begin_with_who_speaks(server):
    body = {"n": 2, "temperature": 1, "seed": 5}

    whole = [choice["message"]["content"] for choice in answered(server, **body)["choices"]]
    choices = [event["choices"][0] for event in server.events(PATH, GREEDY | body)]

    for index, text in enumerate(whole):
        first, *rest = [choice["delta"] for choice in choices if choice["index"] == index]
        assert first["role"] == "assistant"
        assert "".join(delta["content"] for delta in rest) == text


def test_log_probabilities_are_objects_with_the_bytes_of_each_token(server, output):
    completion = output.outputs[0]
    own = [position[token] for token, position in zip(completion.token_ids, completion.logprobs, strict=True)]

    content = answered(server, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    streamed = [event["choices"][0] for event in server.events(PATH, GREEDY | {"logprobs": True, "max_tokens": 2})]
    alone = answered(server, logprobs=True, max_tokens=1)["choices"][0]["logprobs"]["content"]

    assert [each["token"] for each in content] == [each.decoded_token for each in own]
    assert [each["logprob"] for each in content] == pytest.approx([each.logprob for each in own], abs=1e-4)
    assert [bytes(each["bytes"]).decode() for each in content] == [each["token"] for each in content]
    assert [len(each["top_logprobs"]) for each in content] == [2] * 8
    assert content[0]["top_logprobs"][0]["logprob"] >= content[0]["top_logprobs"][1]["logprob"]
    assert alone[0]["top_logprobs"] == []
    told = [each["token"] for choice in streamed if choice["logprobs"] for each in choice["logprobs"]["content"]]
    assert told == [each["token"] for each in content[:2]]


def test_a_message_without_a_limit_is_as_long_as_the_model_can_make_it(server, output):
    long = answered(server, max_tokens=None, ignore_eos=True)["usage"]
    limited = answered(server, max_tokens=None, max_completion_tokens=3)["usage"]

    assert long["total_tokens"] == 512
    assert limited["completion_tokens"] == 3


def test_the_model_goes_on_with_the_last_message(server):
    messages = [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "He was "}]}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}

    tokens = server.post("/tokenize", body).json()["tokens"]
    text = server.post("/detokenize", {"tokens": tokens}).json()["prompt"]

    assert text.endswith("assistant: He was")
    assert answered(server, **body)["usage"]["prompt_tokens"] == len(tokens)


def test_what_tokens_a_text_becomes_and_back(server, output):
    of_text = server.post("/tokenize", {"prompt": "It was", "return_token_strs": True}).json()
    of_messages = server.post("/tokenize", {"messages": ASKED}).json()
    text = server.post("/detokenize", {"tokens": of_text["tokens"]}).json()

    assert text == {"prompt": "It was"}
    assert (of_text["count"], of_text["max_model_len"]) == (len(of_text["tokens"]), 512)
    assert len(of_text["token_strs"]) == of_text["count"]
    assert of_messages["tokens"] == output.prompt_token_ids
    wrong = server.post("/detokenize", {"tokens": [99999]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        ({"messages": []}, "messages", "messages is an empty list; it takes one message at least"),
        ({"messages": [{"content": "x"}]}, "messages", "messages[0] has role None; it takes a text"),
        (
            {"tools": [{"type": "function"}]},
            "tools",
            "it takes [] or null: calls of tools are not read out",
        ),
        ({"tool_choice": "auto"}, "tool_choice", 'tool_choice is "auto"; it takes "none" or null'),
        ({"response_format": {"type": "json_object"}}, "response_format", 'it takes {"type":"text"} or null'),
        ({"chat_template": "x"}, "chat_template", "the server runs that of the model directory alone"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs is 2, and logprobs is not true; set it"),
        ({"logprobs": 2}, "logprobs", "logprobs has a wrong value: expected `bool | null`, got `int`"),
        ({"continue_final_message": True}, "add_generation_prompt", "add_generation_prompt and continue_final_message"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_field_and_the_reason(server, body, param, complaint):
    answer = server.post(PATH, GREEDY | body)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert complaint in error["message"]
    assert error["param"] == param


def test_what_clients_send_at_its_default_may_stand(server, output):
    answer = answered(
        server, tools=[], tool_choice="none", response_format={"type": "text"}, user="me", parallel_tool_calls=True
    )

    assert answer["choices"][0]["message"]["content"] == output.outputs[0].text
