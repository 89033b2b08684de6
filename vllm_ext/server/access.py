"""Who may use the server, and what its end is to who is not answered: around the application, plugins' routes too."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_ext.server.answers import STOPPED, send_whole
from vllm_ext.server.errors import error_body

OPEN_PATHS = ("/health",)
"""What may be read without the key: who watches over a server has none."""
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
"""Of names that nobody can register."""


class KeyCheck:
    """Lets nobody through who does not send the key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "lifespan" or _is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
        else:
            body = error_body(401, "this server wants its key: Authorization: Bearer KEY")
            await _refuse(scope, receive, send, 401, body, (b"www-authenticate", b"Bearer"))

    def _has_key(self, scope: Scope) -> bool:
        given = _values(scope, b"authorization")
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(b" "), self._expected)


class HostCheck:
    """Keeps web pages from a server that is for this machine alone and has no key.

    A page may give its own name this machine's address (DNS rebinding), and is then allowed by the browser to use what
    is there; but the browser sends that name, and a program sends an address, or a name that is known here.

    Args:
        host: the server's own, by which clients may call it, too.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        given = [] if scope["type"] == "lifespan" else _values(scope, b"host")
        foreign = [host for host in given if not self._is_known(host.decode("latin-1"))]
        if not foreign:
            await self._app(scope, receive, send)
            return
        message = (
            f"this server is for its own machine, and the request is for the host {foreign[0].decode('latin-1')!r}: "
            "call it by an address or localhost, or set server.api_key, which lets every host through"
        )
        await _refuse(scope, receive, send, 403, error_body(403, message))

    def _is_known(self, host: str) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        name = name.lower().removesuffix(".")
        return name == self._host or "." not in name or name.endswith(_LOCAL_SUFFIXES) or is_address(name)


class StopNotice:
    """Answers requests for which the server did not wait at its end, where nothing of an answer is sent yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        is_begun = False

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            # Without a word the client would have to guess, and uvicorn logs this as a failure of the application.
            if scope["type"] != "http" or is_begun:
                raise
            await send_whole(send, 503, STOPPED)


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's for itself."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def is_address(name: str) -> bool:
    """Whether it is an IP address, and no name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_open(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_PATHS


def _values(scope: Scope, wanted: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == wanted]


async def _refuse(
    scope: Scope, receive: Receive, send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]
) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
    else:
        await send_whole(send, status, body, *headers)
