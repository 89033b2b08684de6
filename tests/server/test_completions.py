"""``POST /v1/completions``: the engine's texts over HTTP, whole and as events."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx2
import pytest
from support.server import DEMO_MODEL, TIMEOUT_S, running_server, texts_of

from vllm_ext import LLM, SamplingParams

PATH = "/v1/completions"
PROMPT = "It was a truth"
GREEDY = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server():
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def llm():
    with LLM(DEMO_MODEL, dtype="float32", platform="cpu", kv_cache_memory=1 << 22) as made:
        yield made


def completed(server, **body):
    answer = server.post(PATH, GREEDY | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_is_what_the_engine_generates(server, llm):
    (output,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12))

    answer = completed(server, model="demo_model")

    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "demo_model"
    (choice,) = answer["choices"]
    assert (choice["index"], choice["text"]) == (0, output.outputs[0].text)
    assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("length", None, None)
    num_prompt_tokens = len(output.prompt_token_ids)
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (num_prompt_tokens, 12)
    assert usage["total_tokens"] == num_prompt_tokens + 12
    server.check_books()


def test_the_events_of_a_stream_add_up_to_the_same_text(server, llm):
    (output,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=30))

    events = server.events(PATH, GREEDY | {"max_tokens": 30})

    assert len(events) > 1
    assert texts_of(events) == {0: output.outputs[0].text}
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert {event["id"] for event in events} == {events[0]["id"]}
    assert "usage" not in events[0]


def test_the_usage_is_the_last_event_where_it_is_asked_for(server):
    *events, last = server.events(PATH, GREEDY | {"stream_options": {"include_usage": True}})

    assert [event["usage"] for event in events] == [None] * len(events)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12

    options = {"include_usage": True, "continuous_usage_stats": True}
    *events, last = server.events(PATH, GREEDY | {"stream_options": options})
    assert events[-1]["usage"] == last["usage"]


def test_several_prompts_and_several_completions_of_each(server, llm):
    prompts = [PROMPT, "She had"]
    params = SamplingParams(n=2, seed=3, temperature=1.0, max_tokens=8)
    expected = [completion.text for output in llm.generate(prompts, params) for completion in output.outputs]

    body = {"prompt": prompts, "n": 2, "seed": 3, "temperature": 1, "max_tokens": 8}
    answer = completed(server, **body)
    events = server.events(PATH, GREEDY | body)

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert answer["usage"]["completion_tokens"] == 32
    assert [text for _, text in sorted(texts_of(events).items())] == expected
    server.check_books()


def test_token_ids_are_a_prompt_and_lists_of_them_several(server, llm):
    token_ids = llm.get_tokenizer().encode(PROMPT)

    one = completed(server, prompt=token_ids)
    two = completed(server, prompt=[token_ids, token_ids[:2]])

    assert one["choices"][0]["text"] == completed(server)["choices"][0]["text"]
    first, _ = two["choices"]
    assert first["text"] == one["choices"][0]["text"]


def test_parameters_reach_the_sampler(server, llm):
    (output,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12))
    first = output.outputs[0].token_ids[0]

    biased = completed(server, logit_bias={str(first): -100}, return_token_ids=True)["choices"][0]
    only = completed(server, allowed_token_ids=[7], max_tokens=3, return_token_ids=True)["choices"][0]
    stopped = completed(server, stop=["the"])["choices"][0]

    assert biased["token_ids"][0] != first
    assert biased["prompt_token_ids"] == output.prompt_token_ids
    assert only["token_ids"] == [7, 7, 7]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", "the")
    assert "the" not in stopped["text"]


def test_log_probabilities_are_the_engines_in_lists(server, llm):
    (output,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=4, logprobs=2))
    completion = output.outputs[0]
    own = [position[token] for token, position in zip(completion.token_ids, completion.logprobs, strict=True)]

    lists = completed(server, max_tokens=4, logprobs=2)["choices"][0]["logprobs"]
    streamed = [
        event["choices"][0]["logprobs"] for event in server.events(PATH, GREEDY | {"max_tokens": 4, "logprobs": 2})
    ]

    assert lists["tokens"] == [each.decoded_token for each in own]
    assert lists["token_logprobs"] == pytest.approx([each.logprob for each in own], abs=1e-4)
    assert lists["text_offset"] == [len("".join(lists["tokens"][:end])) for end in range(4)]
    assert [len(top) for top in lists["top_logprobs"]] == [2] * 4
    assert [offset for each in streamed for offset in each["text_offset"]] == lists["text_offset"]
    assert [token for each in streamed for token in each["tokens"]] == lists["tokens"]
    by_id = completed(server, max_tokens=1, logprobs=0, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    assert by_id["tokens"] == [f"token_id:{completion.token_ids[0]}"]


def test_an_echo_begins_with_the_prompt_and_its_log_probabilities(server, llm):
    (output,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=0))
    token_ids = output.prompt_token_ids

    (whole,) = completed(server, max_tokens=4, echo=True)["choices"]
    alone = completed(server, prompt=token_ids, max_tokens=0, echo=True, logprobs=1)
    streamed = server.events(PATH, GREEDY | {"max_tokens": 4, "echo": True})

    assert whole["text"] == PROMPT + output.outputs[0].text
    (choice,) = alone["choices"]
    assert (choice["text"], choice["finish_reason"], alone["usage"]["completion_tokens"]) == (PROMPT, "length", 0)
    assert "".join(choice["logprobs"]["tokens"]) == PROMPT
    known = [position[token].logprob for token, position in zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)]
    assert choice["logprobs"]["token_logprobs"] == [None, *(pytest.approx(each, abs=1e-4) for each in known)]
    assert texts_of(streamed) == {0: whole["text"]}


def test_an_echo_of_several_completions_has_the_prompt_in_each(server):
    body = {"n": 2, "temperature": 1, "seed": 1, "max_tokens": 2, "echo": True, "logprobs": 0}

    texts = texts_of(server.events(PATH, GREEDY | body))

    assert [text.startswith(PROMPT) for text in texts.values()] == [True, True]
    assert sorted(texts) == [0, 1]


def test_streams_of_several_clients_are_batched_and_each_gets_its_own(server, llm):
    prompts = ["It was", "She had", "My dear", "Mr. Darcy", "The evening", "Elizabeth"]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24))

    async def ask(client, prompt):
        async with client.stream("POST", PATH, json=GREEDY | {"prompt": prompt, "max_tokens": 24, "stream": True}) as a:
            return [line async for line in a.aiter_lines() if line]

    async def main():
        async with httpx2.AsyncClient(base_url=server.started.url, timeout=TIMEOUT_S, trust_env=False) as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))

    answers = asyncio.run(main())

    for lines, output in zip(answers, outputs, strict=True):
        assert lines[-1] == "data: [DONE]"
        assert texts_of([json.loads(line[6:]) for line in lines[:-1]]) == {0: output.outputs[0].text}
    server.check_books()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_aborts_its_request(server, stream):
    body = httpx2.Request(
        "POST", server.started.url + PATH, json=GREEDY | {"max_tokens": 480, "ignore_eos": True, "stream": stream}
    )
    url = httpx2.URL(server.started.url)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body.content)}"

    num_aborted = server.num_ended("abort")

    with socket.create_connection((url.host, url.port), timeout=TIMEOUT_S) as sock:
        sock.sendall(head.encode() + b"\r\n\r\n" + body.content)
        if stream:
            assert b"200 OK" in sock.recv(4096)
        server.wait_for(lambda: server.num_in_core() == 1)
    server.wait_for(lambda: server.num_in_core() == 0)

    server.check_books()
    server.wait_for(lambda: server.num_ended("abort") == num_aborted + 1)
