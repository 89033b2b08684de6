"""How an answer ends that is broken off: by an error, or by the server's end."""

from __future__ import annotations

import asyncio
import json

import pytest

from vllm_ext.server.answers import EventStream, JSONAnswer

DONE = "data: [DONE]\n\n"


def body_of_error(error):
    return 418, json.dumps({"error": {"message": str(error)}}).encode()


class Client:
    """What a client of one answer gets; it stays until :attr:`leaves` is set."""

    def __init__(self):
        self.leaves = asyncio.Event()
        self.got = asyncio.Event()
        self.status = None
        self.body = b""
        self.is_complete = False

    async def receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        assert not self.is_complete
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message["body"]
            self.is_complete = not message.get("more_body", False)
            self.got.set()

    async def ask(self, answer):
        await answer({"type": "http"}, self.receive, self.send)


async def endless(ended, *, events=1):
    try:
        for number in range(events):
            yield b"data: %d\n\n" % number
        await asyncio.Event().wait()
    finally:
        ended.append(True)


async def failing(*, events):
    for number in range(events):
        yield b"data: %d\n\n" % number
    raise ValueError("it broke")


def run(main):
    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize(
    ("events", "status", "body"),
    [
        (0, 418, '{"error": {"message": "it broke"}}'),
        (1, 200, 'data: 0\n\ndata: {"error": {"message": "it broke"}}\n\n' + DONE),
    ],
)
def test_an_error_is_the_answer_or_after_the_first_event_another_event(events, status, body):
    async def main():
        client = Client()
        await client.ask(EventStream(failing(events=events), body_of_error))
        assert (client.status, client.body.decode(), client.is_complete) == (status, body, True)

    run(main)


def test_a_client_that_leaves_ends_the_work_and_gets_nothing_more():
    async def main():
        client, ended = Client(), []
        asking = asyncio.ensure_future(client.ask(EventStream(endless(ended), body_of_error)))
        await client.got.wait()
        client.leaves.set()
        await asking
        assert (client.body, ended) == (b"data: 0\n\n", [True])

    run(main)


@pytest.mark.parametrize("events", [0, 1])
def test_the_servers_end_is_told_to_who_still_waits(events):
    async def main():
        client, ended = Client(), []
        asking = asyncio.ensure_future(client.ask(EventStream(endless(ended, events=events), body_of_error)))
        await (client.got.wait() if events else asyncio.sleep(0))
        asking.cancel()
        await asking
        text = client.body.decode()
        error = json.loads(text.split("\n\n")[1].removeprefix("data: ") if events else text)["error"]
        assert (client.status, client.is_complete) == (200 if events else 503, True)
        assert (error["code"], error["message"]) == (503, "the server stops, and this request has not ended")
        assert text.endswith(DONE) == bool(events)
        assert ended == [True]

    run(main)


def test_an_answer_that_is_not_streamed_is_told_so_too():
    async def main():
        client = Client()
        asking = asyncio.ensure_future(client.ask(JSONAnswer(asyncio.Event().wait, body_of_error)))
        await asyncio.sleep(0)
        asking.cancel()
        await asking
        assert (client.status, client.is_complete) == (503, True)

    run(main)
