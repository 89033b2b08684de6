"""The example endpoint, installed beside a server that knows nothing of it, and called over HTTP."""

from __future__ import annotations

import pytest
from support.server import running_server

from vllm_ext import __version__
from vllm_ext.config import load_config, parse_set
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.trail import dispatch_trail


@pytest.fixture(autouse=True)
def project(plugins):
    plugins.project("vllm_ext_dummy_endpoint")


def test_its_routes_are_called_with_the_engine_and_its_state_and_one_is_in_place_of_the_servers(caplog):
    caplog.set_level("INFO", logger="vllm_ext.server")
    body = {"prompt": "It was", "max_tokens": 3, "temperature": 0}

    with running_server(plugins__endpoint__enabled=["ask"], server__served_model_name="m") as server:
        own = server.post("/v1/completions", body).json()["choices"][0]["text"]
        answer = server.post("/ask/It was", {"max_tokens": 3})
        misfit = server.post("/ask/It was", {"max_tokens": "many"})
        version = server.get("/version")
        wrong_method = server.post("/version", {})

    assert (answer.status_code, answer.json()) == (200, {"model": "m", "text": own})
    assert (misfit.status_code, misfit.json()["error"]["type"]) == (400, "BadRequestError")
    message = misfit.json()["error"]["message"]
    assert message.startswith("body.max_tokens: ")
    assert ".py" not in message
    assert version.json() == {"version": __version__, "asked": 1}
    assert wrong_method.status_code == 405
    replaced = [record.getMessage() for record in caplog.records if "replaces" in record.getMessage()]
    assert replaced == ["endpoint plugin 'ask' of vllm-ext-dummy-endpoint 0.1 replaces GET /version"]


@pytest.mark.parametrize(
    ("settings", "state", "reason"),
    [
        ((), "available", "plugins.endpoint.enabled does not name it"),
        (("plugins.endpoint.enabled=[ask]",), "active", "named in plugins.endpoint.enabled"),
        (
            ("plugins.endpoint.enabled=[ask]", "engine.runner=pooling"),
            "passed_over",
            "named in plugins.endpoint.enabled; a server leaves it out: it is for models with one of the tasks "
            "generate, and this one has classify, embed, plugin, token_classify, token_embed",
        ),
    ],
)
def test_explain_says_what_a_server_would_do_with_it(settings, state, reason):
    config = load_config((), [parse_set(setting) for setting in ("platform.driver=cpu", *settings)])

    (entry,) = [entry for entry in dispatch_trail(bootstrap(config).dispatcher()) if entry.slot == "endpoint"]

    assert (entry.candidate, entry.owner) == ("'ask' of vllm-ext-dummy-endpoint 0.1", "vllm-ext-dummy-endpoint 0.1")
    assert (entry.state, entry.reason) == (state, reason)
