"""An application for endpoint plugins, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

Endpoint = Callable[..., Any]


class FakeApp:
    """As much of FastAPI's application as endpoint plugins add their routes to; it serves nothing.

    Attributes:
        routes: what answers, by method and path: ``app.routes["GET", "/health"]`` is the function that was added.
        state: what ``EndpointPlugin.init_state`` may prepare.
    """

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Endpoint] = {}
        self.state = SimpleNamespace()

    def add_api_route(
        self, path: str, endpoint: Endpoint, *, methods: Iterable[str] | None = None, **options: Any
    ) -> None:
        """Add ``endpoint`` for ``methods``, by default GET; other ``options`` of FastAPI say nothing here.

        Raises:
            ValueError: another endpoint has the path, or it does not begin with a slash.
        """
        if not path.startswith("/"):
            raise ValueError(f"the path of a route begins with '/', given {path!r}")
        for method in ("GET",) if methods is None else methods:
            key = method.upper(), path
            if self.routes.setdefault(key, endpoint) is not endpoint:
                raise ValueError(f"{method.upper()} {path} is answered by {self.routes[key]!r} already")

    def include_router(self, router: Any, *, prefix: str = "", **options: Any) -> None:
        """Add the routes of an ``APIRouter`` of FastAPI, each below ``prefix``."""
        for route in router.routes:
            self.add_api_route(prefix + route.path, route.endpoint, methods=route.methods)

    def get(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """A decorator that adds a function for GET."""
        return self._decorator("GET", path)

    def post(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """A decorator that adds a function for POST."""
        return self._decorator("POST", path)

    def _decorator(self, method: str, path: str) -> Callable[[Endpoint], Endpoint]:
        def add(endpoint: Endpoint) -> Endpoint:
            self.add_api_route(path, endpoint, methods=[method])
            return endpoint

        return add
