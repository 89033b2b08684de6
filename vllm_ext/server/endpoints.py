"""Routes of endpoint plugins: attached to the application, and prepared before the first request."""

from __future__ import annotations

import inspect
import logging
from argparse import Namespace
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, routing
from starlette.routing import BaseRoute

from vllm_ext.dispatch.endpoints import LoadedEndpoint
from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.errors import ContractError
from vllm_ext.managers import settling
from vllm_ext.plan import BoundPlan

logger = logging.getLogger(__name__)

_RouteKey = tuple[str, str]
"""Method and path, as the route has it: ``("POST", "/v1/x/{y}")``."""


class _Attached(NamedTuple):
    endpoint: LoadedEndpoint
    before: _Parts
    """What the application was without it."""
    after: _Parts
    """And what it was with it."""

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Those that are its own."""
        return tuple(route for route in self.after.routes if route not in self.before.routes)


class _Parts(NamedTuple):
    """What a plugin may change of an application."""

    routes: tuple[BaseRoute, ...]
    middleware: tuple[Any, ...]
    on_startup: tuple[Any, ...]
    on_shutdown: tuple[Any, ...]
    exception_handlers: dict[Any, Any]

    @classmethod
    def of(cls, app: FastAPI) -> _Parts:
        routes, middleware, on_startup, on_shutdown = (tuple(part) for part in _lists_of(app))
        return cls(routes, middleware, on_startup, on_shutdown, dict(app.exception_handlers))

    def restore(self, app: FastAPI) -> None:
        for part, before in zip(_lists_of(app), self[:4], strict=True):
            part[:] = before
        app.exception_handlers.clear()
        app.exception_handlers.update(self.exception_handlers)

    def take_out(self, app: FastAPI, before: _Parts) -> None:
        """Leave in ``app`` nothing of these parts but what was there before; what came later stays."""
        for part, own, others in zip(_lists_of(app), self[:4], before[:4], strict=True):
            part[:] = [each for each in part if each not in own or each in others]
        for kind, handler in self.exception_handlers.items():
            if app.exception_handlers.get(kind) is handler and before.exception_handlers.get(kind) is not handler:
                del app.exception_handlers[kind]
                if kind in before.exception_handlers:
                    app.exception_handlers[kind] = before.exception_handlers[kind]


class AttachedEndpoints:
    """The endpoint plugins of an application.

    A route of a plugin with the method and the path of one of the server's own takes its place, which is logged. One
    plugin that was merely found and fails is reported once and leaves nothing in the application.

    Args:
        app: has the server's own routes, and no others.
        tasks: what the model can be asked for; a plugin for others is left out, with a warning.

    Raises:
        PluginLoadError: a plugin that the user named failed, or has a route of another one.
    """

    def __init__(
        self, app: FastAPI, endpoints: Iterable[LoadedEndpoint], bound_plan: BoundPlan, tasks: Sequence[str]
    ) -> None:
        self._app = app
        self._bound_plan = bound_plan
        self._attached: list[_Attached] = []
        own = tuple(app.router.routes)
        for endpoint in endpoints:
            if objection := endpoint.objection(tasks):
                logger.warning("%s is left out: %s", endpoint.source, objection)
            else:
                self._attach(endpoint, own)

    @property
    def names(self) -> list[str]:
        """Of the plugins whose routes are there."""
        return [attached.endpoint.decision.name for attached in self._attached]

    @property
    def routes(self) -> list[str]:
        """Method and path of those that plugins added, sorted."""
        return sorted(f"{method} {path}" for attached in self._attached for method, path in _keys(attached.routes))

    async def init_state(self, engine: AsyncLLM, args: Namespace) -> None:
        """Let each plugin prepare the application's state; errors as of the constructor.

        Args:
            args: what the server was started with, by vLLM's names.
        """
        for attached in list(self._attached):
            is_done = False
            endpoint = attached.endpoint
            with settling(self._bound_plan, endpoint.decision, "initialized", (CancelledError,)):
                result: object = endpoint.plugin.init_state(engine, self._app.state, args)
                if not inspect.isawaitable(result):
                    raise _misfit(endpoint, f"init_state() returned {result!r}; it has to be async")
                await result
                is_done = True
            if not is_done:
                self._detach(attached)

    def _attach(self, endpoint: LoadedEndpoint, own: Sequence[BaseRoute]) -> None:
        before = _Parts.of(self._app)
        is_done = False
        try:
            with settling(self._bound_plan, endpoint.decision, "attached"):
                # Its contract says that it returns nothing; plugins may all the same.
                attach_router: Callable[[FastAPI], object] = endpoint.plugin.attach_router
                result = attach_router(self._app)
                if inspect.iscoroutine(result):
                    result.close()
                    raise _misfit(endpoint, "attach_router() is async, so that nothing of it has run")
                routes = tuple(route for route in self._app.router.routes if route not in before.routes)
                self._check_others(endpoint, routes)
                self._replace(endpoint, routes, own)
                is_done = True
        finally:
            if not is_done:
                before.restore(self._app)
        if is_done:
            logger.debug("%s is attached, by the name %r", endpoint.source, endpoint.plugin.name)
            self._attached.append(_Attached(endpoint, before, _Parts.of(self._app)))

    def _check_others(self, endpoint: LoadedEndpoint, routes: Sequence[BaseRoute]) -> None:
        """Of two plugins with one route, only the first would ever be called."""
        new = set(_keys(routes))
        for other in self._attached:
            for method, path in _keys(other.routes):
                if (method, path) in new:
                    raise _misfit(
                        endpoint, f"it has the route {method} {path}, as {other.endpoint.source} has; use one of them"
                    )

    def _replace(self, endpoint: LoadedEndpoint, routes: Sequence[BaseRoute], own: Sequence[BaseRoute]) -> None:
        new = set(_keys(routes))
        for route in own:
            # Each of the server's own has one method.
            for method, path in _keys([route]):
                if (method, path) in new and route in self._app.router.routes:
                    self._app.router.routes.remove(route)
                    logger.info("%s replaces %s %s", endpoint.source, method, path)

    def _detach(self, attached: _Attached) -> None:
        """Take out what a plugin attached; what those after it did stays."""
        self._attached.remove(attached)
        routes = self._app.router.routes
        attached.after.take_out(self._app, attached.before)
        kept = list(routes)
        keys = set(_keys(kept))
        back = [route for route in attached.before.routes if route not in kept and keys.isdisjoint(_keys([route]))]
        routes[:] = [*back, *kept]


def _lists_of(app: FastAPI) -> tuple[list[Any], ...]:
    """Those of :class:`_Parts`, in its order."""
    return app.router.routes, app.user_middleware, app.router.on_startup, app.router.on_shutdown


def _keys(routes: Iterable[Any]) -> Iterator[_RouteKey]:
    """Method and path of each route, and of those of routers that were included."""
    # Newer versions of FastAPI keep an included router as one entry, and have this function to look into it.
    each = getattr(routing, "iter_route_contexts", iter)(list(routes))
    for route in each:
        for method in getattr(route, "methods", None) or ():
            # starlette adds it to GET.
            if method != "HEAD":
                yield method, route.path


def _misfit(endpoint: LoadedEndpoint, text: str) -> ContractError:
    return ContractError(f"{endpoint.source}: {text}", plugin=endpoint.decision.name)
