"""What every route has in common: refusals in OpenAI's shape, the key, the state of the engine."""

from __future__ import annotations

import json
import socket

import httpx2
import pytest
from support.server import TIMEOUT_S, running_server

from vllm_ext import __version__
from vllm_ext.server.decoding import MAX_BODY_BYTES

PATH = "/v1/completions"
BODY = {"prompt": "It was", "max_tokens": 2, "temperature": 0}
KEY = "hunter2hunter2"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server():
    with running_server(server__api_key=KEY) as running:
        running.client.headers["authorization"] = f"Bearer {KEY}"
        yield running


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (name, error), *rest = answer.json().items()
    assert (name, rest, list(error)) == ("error", [], ["message", "type", "param", "code"])
    assert error["code"] == status
    assert "Traceback" not in answer.text
    return error


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        ({"max_toks": 3}, "max_toks", "unknown field 'max_toks' (did you mean 'max_tokens'?); it takes: add_special_t"),
        ({"x" * 999: 3}, "x" * 57 + "...", "unknown field '" + "x" * 57 + "...'; it takes: add_special_t"),
        ({"priority": 2**70}, "priority", "priority has a wrong value: "),
        ({"temperature": -1}, "temperature", "temperature is -1.0; it takes a number, from 0.0 to"),
        ({"temperature": "hot"}, "temperature", "temperature has a wrong value: expected `float | null`, got `str`"),
        ({"prompt": ["a", [5]]}, "prompt", "prompt is a list of several kinds; it takes a text, a list of texts"),
        ({"prompt": []}, "prompt", "prompt is an empty list"),
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"prompt": [99999]}, None, "token id 99999 is outside the model's vocabulary"),
        ({"prompt": [5] * 600}, None, "600"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; it takes"),
        ({"n": 2}, "n", "n is 2, and the temperature 0.0"),
        ({"best_of": 2}, "best_of", "best_of is 2; it takes 1 or null: completions are sampled one by one"),
        ({"use_beam_search": True}, "use_beam_search", "use_beam_search is true; it takes false or null"),
        ({"suffix": "end"}, "suffix", 'suffix is "end"; it takes "" or null: text is generated after a prompt'),
        ({"logit_bias": {"a": 1}}, "logit_bias", "logit_bias has a wrong value: expected `int`, got `str`"),
        ({"priority": 1}, "priority", "priority is 1"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_that_is_wrong_is_named_and_nothing_is_streamed(server, body, param, complaint, stream):
    error = error_of(server.post(PATH, BODY | body | {"stream": stream}), 400)

    assert complaint in error["message"]
    assert (error["param"], error["type"]) == (param, "BadRequestError")


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options", "and stream is not true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field 'stream_options.x'"),
    ],
)
def test_options_of_a_stream_are_for_a_stream_and_known(server, body, param, complaint):
    error = error_of(server.post(PATH, BODY | body), 400)

    assert complaint in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("content", "headers", "status", "complaint"),
    [
        (b"{", JSON, 400, "the body is no JSON: "),
        (b'{"prompt": "\xff"}', JSON, 400, "the body is no JSON: "),
        (b"[1]", JSON, 400, "the body has a wrong form: expected `object`, got `array`"),
        (b'{"vllm_xargs": {"a": ' + b"[" * 100_000, JSON, 400, "the body is nested too deeply"),
        (b"{}", JSON, 400, "field 'prompt' is missing"),
        (
            json.dumps(BODY).encode(),
            {"content-type": "text/plain"},
            415,
            "is declared as 'text/plain'; Content-Type",
        ),
    ],
)
def test_a_body_that_is_none_is_refused(server, content, headers, status, complaint):
    error = error_of(server.client.post(PATH, content=content, headers=headers), status)

    assert complaint in error["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server):
    url = httpx2.URL(server.started.url)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {KEY}\r\n"

    with socket.create_connection((url.host, url.port), timeout=TIMEOUT_S) as sock:
        sock.sendall(f"{head}Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode())
        answer = sock.recv(4096)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_another_model_is_not_found(server):
    error = error_of(server.post(PATH, BODY | {"model": "gpt-4"}), 404)

    assert error["message"] == "there is no model 'gpt-4'; this server has 'demo_model'"
    assert (error["param"], error["type"]) == ("model", "NotFoundError")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", PATH, 405), ("GET", "/docs", 404)]
)
def test_a_route_that_is_not_there(server, method, path, status):
    error = error_of(server.client.request(method, path), status)

    assert error["message"] == f"there is no {method} {path}"


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer \xfc"])
def test_without_the_key_only_the_engines_health_is_told(server, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}

    with httpx2.Client(base_url=server.started.url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        for answer in (client.post(PATH, json=BODY), client.get("/v1/models"), client.get("/metrics")):
            error = error_of(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in error["message"]
        assert client.get("/health").status_code == 200


def test_what_the_server_says_of_itself(server):
    (model,) = server.get("/v1/models").json()["data"]

    assert server.get("/version").json() == {"version": __version__}
    assert (model["id"], model["object"], model["max_model_len"]) == ("demo_model", "model", 512)
    # With a key, which no page has, it may have any name.
    health = server.get("/health", headers={"host": "its.name.example"})
    assert (health.status_code, health.content) == (200, b"")


def test_the_metrics_count_requests(server):
    before = server.num_ended("length")

    server.post(PATH, BODY)

    server.wait_for(lambda: server.num_ended("length") == before + 1)
    assert server.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_a_stat_logger_that_is_disabled_gives_no_metrics_and_a_dead_engine_is_unavailable():
    with running_server(plugins__stat_logger__disabled=["prometheus"]) as server:
        error = error_of(server.get("/metrics"), 404)
        assert "the stat logger 'prometheus' is not on" in error["message"]
        assert server.post(PATH, BODY).status_code == 200

        server.engine.shutdown()

        assert "shut down" in error_of(server.get("/health"), 503)["message"]
        assert error_of(server.post(PATH, BODY), 503)["type"] == "ServiceUnavailableError"
        assert error_of(server.post(PATH, BODY | {"stream": True}), 503)
