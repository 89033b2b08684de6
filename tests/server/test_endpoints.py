"""Endpoint plugins: what becomes of one that fails, that is for other models, or that has the route of another."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from support.distributions import config

from vllm_ext.discovery import scan
from vllm_ext.dispatch.endpoints import load_endpoints
from vllm_ext.errors import PluginLoadError
from vllm_ext.plan import resolve
from vllm_ext.server.endpoints import AttachedEndpoints

GROUP = "vllm.endpoint_plugins"
PLUGIN = """
class Endpoint:
    name = "acme"
    required_tasks = ("generate", "embed")

    def attach_router(self, app):
        @app.get("/own")
        async def own(): return "plugin"

        @app.post("/other/{thing}")
        async def thing(): return "plugin"

    async def init_state(self, engine_client, state, args):
        state.prepared = args
"""


@pytest.fixture
def attach(plugins):
    """Installs plugins by name and source, and has them attached to an application with two routes."""

    def attach(enabled, tasks=("generate",), **sources):
        for name, source in sources.items():
            plugins.distribution(name, {GROUP: [f"{name} = {name}:Endpoint"]}, {f"{name}.py": source})
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        app.add_api_route("/own", lambda: "own", methods=["GET"])
        app.add_api_route("/other/{thing}", lambda: "own", methods=["GET"])
        bound_plan = resolve(scan(), config(plugins__endpoint__enabled=enabled)).bind(None)
        attached = AttachedEndpoints(app, load_endpoints(bound_plan), bound_plan, tasks)
        asyncio.run(attached.init_state(None, "args"))
        return app

    return attach


def answers(app, method, path):
    """What the application answers, or the status of an error."""

    async def ask():
        sent = []
        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}

        async def receive():
            return {"type": "http.request", "body": b""}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        start, body = sent
        return body["body"].decode().strip('"') if start["status"] == 200 else start["status"]

    return asyncio.run(ask())


def test_its_route_takes_the_place_of_one_with_the_same_method_and_path_and_of_no_other(attach):
    app = attach(["acme"], acme=PLUGIN)

    assert answers(app, "GET", "/own") == "plugin"
    assert answers(app, "POST", "/own") == 405
    assert answers(app, "POST", "/other/x") == "plugin"
    assert answers(app, "GET", "/other/x") == "own"
    assert app.state.prepared == "args"


def test_without_being_named_it_is_not_even_imported(attach):
    app = attach([], acme="raise RuntimeError('imported')")

    assert answers(app, "POST", "/own") == 405


def test_one_for_other_tasks_is_left_out_with_the_reason(attach, caplog):
    app = attach(["acme"], ("embed_all", "rank"), acme=PLUGIN)

    assert answers(app, "GET", "/own") == "own"
    assert caplog.messages == [
        "endpoint plugin 'acme' of acme 0.1 is left out: it is for models with one of the tasks embed, generate, and "
        "this one has embed_all, rank"
    ]


def test_one_without_tasks_is_for_all_models(attach):
    app = attach(["acme"], ("rank",), acme=PLUGIN.replace('("generate", "embed")', "None"))

    assert answers(app, "GET", "/own") == "plugin"


FAULTS = {
    "attach": (
        ("async def thing(): return", "async def thing(): 1\n        1 / 0; return"),
        "ZeroDivisionError: division",
    ),
    "init": (("state.prepared = args", "raise SystemExit(3)"), "SystemExit: 3"),
    "init is no coroutine": (("async def init_state", "def init_state"), "init_state() returned None; it has to be"),
    "attach is a coroutine": (("    def attach_router", "    async def attach_router"), "attach_router() is async, so"),
    "tasks": (('("generate", "embed")', '"generate"'), "has required_tasks 'generate'; it takes a tuple of names"),
}


@pytest.mark.parametrize("fault", FAULTS)
class TestOneThatFails:
    def test_is_an_error_with_its_name_where_it_was_named(self, attach, fault):
        change, complaint = FAULTS[fault]

        with pytest.raises(PluginLoadError, match="^endpoint plugin 'acme' of acme 0.1 failed: ") as caught:
            attach(["acme"], acme=PLUGIN.replace(*change))

        assert complaint in str(caught.value)

    def test_is_reported_and_leaves_nothing_behind_where_it_was_merely_found(self, attach, fault, caplog):
        change, complaint = FAULTS[fault]
        other = PLUGIN.replace("/own", "/of_another").replace("/other/{thing}", "/of_another")

        app = attach("all", acme=PLUGIN.replace(*change), beta=other)

        (message,) = [message for message in caplog.messages if "is left out, since it failed" in message]
        assert message.startswith("endpoint plugin 'acme' of acme 0.1 ")
        assert complaint in message
        assert answers(app, "GET", "/own") == "own"
        assert answers(app, "POST", "/other/x") == 405
        assert answers(app, "GET", "/of_another") == "plugin"


def test_of_two_with_one_route_the_second_is_refused(attach):
    with pytest.raises(
        PluginLoadError, match=r"'beta' of beta 0.1 .* it has the route GET /own, as endpoint plugin 'acme' of acme 0.1"
    ):
        attach(["acme", "beta"], acme=PLUGIN, beta=PLUGIN.replace("/other/{thing}", "/x"))


LEAVER = """
class Endpoint:
    name = "leaver"
    required_tasks = None

    def attach_router(self, app):
        app.middleware("http")(self.refuse)
        app.add_exception_handler(404, self.refuse)
        app.router.on_startup.append(self.refuse)
        app.router.on_shutdown.append(self.refuse)
        FAULT

    async def refuse(self, *arguments): raise RuntimeError

    async def init_state(self, engine_client, state, args): raise ValueError("no state")
"""


@pytest.mark.parametrize("fault", ["raise ValueError('no routes')", "pass"])
def test_one_that_fails_leaves_no_middleware_handler_or_hook_and_those_of_others_stay(attach, fault):
    other = PLUGIN.replace(
        '@app.get("/own")',
        "app.add_middleware(Nothing); app.router.on_startup.append(print); app.add_exception_handler(404, print)\n"
        '        @app.get("/own")',
    )
    other += "\nclass Nothing:\n    def __init__(self, app): self.__call__ = app\n"

    app = attach("all", leaver=LEAVER.replace("FAULT", fault), other=other)

    assert [each.cls.__name__ for each in app.user_middleware] == ["Nothing"]
    assert (app.router.on_startup, app.router.on_shutdown) == ([print], [])
    assert app.exception_handlers[404] is print
