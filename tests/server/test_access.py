"""Who is let through to the application, and what those get for whom the server's end did not wait."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx2
import pytest
from support.server import TIMEOUT_S, running_server

from vllm_ext.server import run
from vllm_ext.server.access import HostCheck, KeyCheck, StopNotice, is_loopback

KEY = "hunter2hunter2"


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def ask(app, *, kind="http", method="GET", path="/x", **headers):
    """The status of the answer, or the code with which a websocket is closed, and the body."""
    sent = []
    named = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def receive():
        return {"type": f"{kind}.connect"}

    async def send(message):
        sent.append(message)

    await app({"type": kind, "method": method, "path": path, "headers": named}, receive, send)
    return sent[0].get("status") or sent[0]["code"], sent[-1].get("body")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("127.0.0.1:8000", "localhost", "LOCALHOST.:80", "[::1]:8000", "192.168.0.7", "box")),
        *((host, 200) for host in ("host.docker.internal:8000", "app.localhost", "my.name.example:80")),
        *((host, 403) for host in ("evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example")),
        ("a.b]", 403),
    ],
)
def test_a_page_that_gives_its_name_this_machines_address_is_not_let_through(host, status):
    got, body = asyncio.run(ask(HostCheck(application, "My.Name.example"), host=host))

    assert got == status
    if status != 200:
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("PermissionDeniedError", 403)
        assert repr(host) in error["message"]


def test_a_websocket_of_such_a_page_is_closed_and_who_names_no_host_is_no_browser():
    app = HostCheck(application, "127.0.0.1")

    assert asyncio.run(ask(app, kind="websocket", host="evil.example")) == (1008, None)
    assert asyncio.run(ask(app))[0] == 200


@pytest.mark.parametrize(
    ("address", "expected"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("fe80::1%eth0", False)]
)
def test_addresses_that_are_this_machine_alone(address, expected):
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    ("method", "path", "authorization", "status"),
    [
        ("GET", "/x", f"bearer  {KEY}", 200),  # HTTP's schemes have no case
        ("GET", "/x", f"Bearer{KEY}", 401),
        ("GET", "/x", "Bearer ", 401),
        ("HEAD", "/health", "", 200),
        ("POST", "/health", "", 401),  # a plugin's
    ],
)
def test_the_key_is_wanted_for_all_but_reading_the_health(method, path, authorization, status):
    app = KeyCheck(application, KEY)

    assert asyncio.run(ask(app, method=method, path=path, authorization=authorization))[0] == status


def test_a_server_without_a_key_checks_hosts_and_its_end_is_told_to_who_has_not_sent_all(monkeypatch, caplog):
    monkeypatch.setattr(run, "GRACE_S", 0.01)

    with running_server() as server:
        assert server.get("/version", headers={"host": "evil.example"}).status_code == 403
        assert server.get("/version").status_code == 200
        url = httpx2.URL(server.started.url)
        sock = socket.create_connection((url.host, url.port), timeout=TIMEOUT_S)
        head = "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
        # The server says that it is asked to go on when the route reads the body.
        sock.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
    with sock:
        answer = sock.recv(4096)

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the server stops, and this request has not ended" in answer
    assert "Traceback" not in caplog.text


def test_what_is_begun_is_no_answer_of_another():
    async def begun(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(ask(StopNotice(begun)))
