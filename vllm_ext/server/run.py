"""A server from its settings to its end: socket, engine, plugins, requests, signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from vllm_ext.config import Config
from vllm_ext.contracts.groups import IN_TREE_STAT_LOGGERS_GROUP, STAT_LOGGER
from vllm_ext.contracts.stat_logger import StatLoggerFactory
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.endpoints import LoadedEndpoint, load_endpoints
from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.errors import PluginError, Unavailable
from vllm_ext.managers import extension_outcomes
from vllm_ext.plan import Decision
from vllm_ext.server.access import HostCheck, KeyCheck, StopNotice, is_loopback
from vllm_ext.server.app import build_app
from vllm_ext.server.endpoints import AttachedEndpoints
from vllm_ext.server.listening import listen, url_of
from vllm_ext.server.service import Service

GRACE_S = 5
"""Seconds that requests in flight get when the server is told to stop."""


class Started(NamedTuple):
    """A server that clients can connect to."""

    url: str
    engine: AsyncLLM
    """Belongs to the event loop of the server."""
    stop: Callable[[], None]
    """Tells it to end, as a signal does; from any thread."""


Announce = Callable[[Started], None]
"""Called when clients can connect."""


class ModelServer(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and leaves signals to who runs it."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; afterwards clients can connect."""
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: see :func:`stopping_on_signals`."""
        yield


def serve(config: Config, sock: socket.socket, announce: Announce, *, progress: bool = False) -> None:
    """Serve until a signal ends it: requests in flight get a few seconds then, and the signal is raised once more.

    Args:
        sock: what :func:`vllm_ext.server.listening.bind` gave for the settings; the caller closes it.
        announce: gets the server, when clients can connect.
        progress: whether loading may show a progress bar.

    Raises:
        ConfigError: another server has taken the port meanwhile.
        PluginError, ModelError, EngineError: what prevents the start.
    """
    dispatcher = bootstrap(config).dispatcher(progress=progress)
    dispatcher.stat_logger_factories = _metrics_of(dispatcher)
    with dispatcher.activate():
        # What is wrong with them is worth knowing before a model is loaded.
        endpoints = load_endpoints(dispatcher.bound_plan)
    engine = AsyncLLM.from_dispatcher(dispatcher)
    try:
        with stopping_on_signals() as stop:
            asyncio.run(_serve(dispatcher, engine, endpoints, sock, announce, stop))
    finally:
        engine.shutdown()


class Stop:
    """How a signal reaches what is running; ``received`` are those that came."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._server: uvicorn.Server | None = None
        self._cancel: Callable[[], object] | None = None

    def watch(self, server: uvicorn.Server) -> None:
        """Let signals end ``server``, or the current task while it has not started."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._server = server
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)

    def __call__(self, number: int, frame: object) -> None:
        """Handle a signal: the first lets requests in flight end, a further interrupt does not wait for them."""
        self.received.append(number)
        if self._server is not None and self._server.started:
            self._server.force_exit = self._server.should_exit and number == signal.SIGINT
            self._server.should_exit = True
        elif self._cancel is None or len(self.received) > 1:
            raise KeyboardInterrupt
        else:
            self._cancel()


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Signals inside the block go to what is yielded; the first is raised once more after it, for who waits for it.

    Outside the main thread, which alone gets signals, nothing is changed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    except asyncio.CancelledError:
        if not stop.received:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stop.received:
            signal.raise_signal(stop.received[0])


async def _serve(
    dispatcher: Dispatcher,
    engine: AsyncLLM,
    endpoints: list[LoadedEndpoint],
    sock: socket.socket,
    announce: Announce,
    stop: Stop,
) -> None:
    async with engine:
        service = Service(engine, dispatcher.settings, has_metrics=_has_metrics(dispatcher))
        app = build_app(service)
        with contextlib.closing(service), _uvicorns_log():
            uvicorn_config = uvicorn.Config(
                _guarded(app, sock, dispatcher),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
            server = ModelServer(
                uvicorn_config, lambda: announce(Started(url_of(sock), engine, lambda: stop(signal.SIGTERM, None)))
            )
            stop.watch(server)
            attached = await _attach(dispatcher, service, app, endpoints)
            listen(sock, dispatcher.config)
            try:
                await server.serve([sock])
            except SystemExit as error:
                # uvicorn's way to say that start-up code of the application failed; it has logged the traceback.
                names = ", ".join(attached.names) or "none"
                raise PluginError(f"start-up code that an endpoint plugin added failed; plugins: {names}") from error


def _guarded(app: ASGIApp, sock: socket.socket, dispatcher: Dispatcher) -> ASGIApp:
    """``app`` for those who may use it."""
    settings = dispatcher.settings.server
    app = StopNotice(app)
    if settings.api_key is not None:
        return KeyCheck(app, settings.api_key)
    # Others in a network have names for this machine that nobody knows here; and it is open to them all anyway.
    return HostCheck(app, settings.host) if is_loopback(sock.getsockname()[0]) else app


async def rehearse(config: Config) -> list[str]:
    """Do all that a server does before its first request, and end; it has no socket.

    Returns: method and path of each route that endpoint plugins add, such as ``GET /health``, sorted.

    Raises:
        PluginError, ModelError, EngineError: what prevents the start.
    """
    dispatcher = bootstrap(config).dispatcher(progress=False)
    with dispatcher.activate():
        endpoints = load_endpoints(dispatcher.bound_plan)
    async with AsyncLLM.from_dispatcher(dispatcher) as engine:
        with contextlib.closing(Service(engine, dispatcher.settings)) as service:
            app = build_app(service)
            attached = await _attach(dispatcher, service, app, endpoints)
            # Start-up and shutdown code that plugins add.
            async with app.router.lifespan_context(app):
                return attached.routes


async def _attach(
    dispatcher: Dispatcher, service: Service, app: FastAPI, endpoints: Sequence[LoadedEndpoint]
) -> AttachedEndpoints:
    with dispatcher.activate():
        attached = AttachedEndpoints(app, endpoints, dispatcher.bound_plan, service.tasks)
        await attached.init_state(service.engine, _args(dispatcher, service))
    return attached


def _args(dispatcher: Dispatcher, service: Service) -> Namespace:
    """What plugins get, by vLLM's names; without the key, which is no business of theirs."""
    server = dispatcher.settings.server
    return Namespace(
        host=server.host, port=server.port, model=service.model_config.model, served_model_name=[service.model_name]
    )


def _metrics_of(dispatcher: Dispatcher) -> tuple[StatLoggerFactory, ...]:
    """The stat logger for ``/metrics``, where nothing keeps it out: a server has it on, if what it needs is there."""
    decision = _prometheus(dispatcher)
    if decision.status != "available" or dispatcher.settings.plugins.stat_logger.enabled != "all":
        return ()
    try:
        from vllm_ext.stat_loggers.prometheus import PrometheusStatLogger
    except Unavailable:
        return ()
    return (PrometheusStatLogger,)


def _has_metrics(dispatcher: Dispatcher) -> bool:
    if dispatcher.stat_logger_factories:
        return True
    key = _prometheus(dispatcher).key
    outcomes = extension_outcomes(dispatcher.bound_plan, STAT_LOGGER)
    return any(outcome.key == key and outcome.state == "active" for outcome in outcomes)


def _prometheus(dispatcher: Dispatcher) -> Decision:
    decisions = dispatcher.bound_plan.plan.decisions
    return next(d for d in decisions if (d.group, d.name) == (IN_TREE_STAT_LOGGERS_GROUP, "prometheus"))


@contextlib.contextmanager
def _uvicorns_log() -> Iterator[None]:
    """What uvicorn logs goes where our own log does."""
    uvicorns, ours = logging.getLogger("uvicorn"), logging.getLogger("vllm_ext")
    parent, level = uvicorns.parent, uvicorns.level
    uvicorns.parent = ours
    uvicorns.setLevel(ours.getEffectiveLevel())
    try:
        yield
    finally:
        uvicorns.parent = parent
        uvicorns.setLevel(level)
