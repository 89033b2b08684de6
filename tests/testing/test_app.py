"""The application that endpoint plugins add routes to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vllm_ext.testing import FakeApp


def one(): ...


def two(): ...


def test_routes_are_found_by_method_and_path():
    app = FakeApp()

    app.add_api_route("/one", one, methods=["GET", "put"], tags=["acme"])
    app.get("/two")(two)
    app.post("/two", status_code=201)(one)

    assert app.routes == {("GET", "/one"): one, ("PUT", "/one"): one, ("GET", "/two"): two, ("POST", "/two"): one}


def test_those_of_a_router_are_below_its_prefix():
    app = FakeApp()
    router = SimpleNamespace(routes=[SimpleNamespace(path="/one", endpoint=one, methods={"GET"})])

    app.include_router(router, prefix="/acme")

    assert app.routes == {("GET", "/acme/one"): one}


def test_a_path_has_one_answer_and_begins_with_a_slash():
    app = FakeApp()
    app.add_api_route("/one", one)

    with pytest.raises(ValueError, match=r"^GET /one is answered by <function one at .*> already$"):
        app.add_api_route("/one", two)
    with pytest.raises(ValueError, match="^the path of a route begins with '/', given 'two'$"):
        app.get("two")(two)
