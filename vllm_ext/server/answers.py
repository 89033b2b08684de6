"""Answers as bytes and as responses; those that are made while the client waits end when it leaves."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vllm_ext.server.errors import error_body

ErrorBodyOf = Callable[[Exception], tuple[int, bytes]]
"""Status and JSON for what was raised."""

STOPPED = error_body(503, "the server stops, and this request has not ended")
"""For who still waits then."""
JSON_TYPE = "application/json"
_ENCODER = msgspec.json.Encoder()
_EVENTS_TYPE = b"text/event-stream; charset=utf-8"


def encode(answer: Any) -> bytes:
    """JSON for an answer, or for a part of one."""
    return _ENCODER.encode(answer)


def event(data: bytes) -> bytes:
    """An event of a server (SSE)."""
    return b"data: " + data + b"\n\n"


def json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that is there."""
    return Response(body, status, headers=headers, media_type=JSON_TYPE)


_DONE = event(b"[DONE]")


class Answer(Response):
    """The answer to one request. A client that disconnects ends what is being done for it.

    Args:
        body_of_error: what is answered where that fails.
    """

    def __init__(self, body_of_error: ErrorBodyOf) -> None:
        super().__init__()
        self._body_of_error = body_of_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        working = asyncio.ensure_future(self.answer(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        is_stopped = False
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Who has waited long enough for this request when the server ends; the client is told.
            is_stopped = True
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        if not working.cancelled():
            working.result()
        elif is_stopped:
            await self.break_off(send)

    @abstractmethod
    async def answer(self, send: Send) -> None:
        """Send all of it; cancelled where the client leaves before, or the server stops."""

    async def break_off(self, send: Send) -> None:
        """Tell the client that the rest does not come, as the server stops."""
        await send_whole(send, 503, STOPPED)


class JSONAnswer(Answer):
    """JSON, at once. ``work`` gives its bytes."""

    def __init__(self, work: Callable[[], Awaitable[bytes]], body_of_error: ErrorBodyOf) -> None:
        super().__init__(body_of_error)
        self._work = work

    async def answer(self, send: Send) -> None:
        status = 200
        try:
            body = await self._work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            status, body = self._body_of_error(error)
        await send_whole(send, status, body)


class EventStream(Answer):
    """Events of a server (SSE), while they come.

    Args:
        events: gives the bytes of one event, or of several. An error before the first is the answer, with its status;
            a later one is an event, since the status is sent.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], body_of_error: ErrorBodyOf) -> None:
        super().__init__(body_of_error)
        self._events = events
        self._is_begun = False

    async def answer(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            try:
                first = await anext(events)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
                await send_whole(send, *self._body_of_error(error))
                return
            headers = [(b"content-type", _EVENTS_TYPE), (b"cache-control", b"no-cache")]
            self._is_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:  # noqa: BLE001 - as above
                await self._end(send, self._body_of_error(error)[1])
                return
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})

    async def break_off(self, send: Send) -> None:
        if not self._is_begun:
            await super().break_off(send)
        else:
            await self._end(send, STOPPED)

    async def _end(self, send: Send, error: bytes) -> None:
        """End with an error, the status being sent."""
        await send({"type": "http.response.body", "body": event(error) + _DONE, "more_body": False})


async def send_whole(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send JSON that is there."""
    length = str(len(body)).encode()
    all_headers = [(b"content-type", JSON_TYPE.encode()), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
