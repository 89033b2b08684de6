"""A server in a thread, with a real socket, for tests that send requests to it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from support.async_engine import check_books

import vllm_ext
from vllm_ext.config import Override, load_config
from vllm_ext.server.listening import bind
from vllm_ext.server.run import Started, serve

DEMO_MODEL = Path(vllm_ext.__file__).parent / "assets" / "demo_model"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SETTINGS = {"server.port": 0, "platform.driver": "cpu", "engine.dtype": "float32", "engine.kv_cache_memory": 1 << 22}
TIMEOUT_S = 60


class ServerThread:
    """A server, and a client of it."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.engine = started.engine
        self.client = httpx2.Client(base_url=started.url, timeout=TIMEOUT_S, trust_env=False)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **options)

    def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream, which has to end as streams do."""
        answer = self.post(path, body | {"stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, done, rest = answer.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def num_in_core(self) -> int:
        """Requests that the engine's core has been sent, and that have not ended."""
        return len(self.engine._requests._core_ids)

    def num_ended(self, reason: str) -> float:
        """Requests that ended for this reason, by the server's own metrics."""
        pattern = rf'^vllm:request_success_total\{{.*finished_reason="{reason}".*\}} (\S+)$'
        return sum(float(number) for number in re.findall(pattern, self.get("/metrics").text, re.MULTILINE))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, "it does not come"
            time.sleep(0.002)

    def in_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What ``work`` gives in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.engine._core._loop).result(TIMEOUT_S)

    def check_books(self) -> None:
        """The engine has no request in flight, and all blocks are free."""
        self.in_loop(check_books(self.engine))


@contextmanager
def running_server(*, model: Path | None = None, **settings: Any) -> Iterator[ServerThread]:
    """A server with these settings besides those above; ``server__api_key=...`` is ``server.api_key``."""
    given = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    if model is not None:
        given["engine.model"] = str(model)
    config = load_config((), [Override(key, value, "test") for key, value in given.items()])
    ready: list[Started] = []
    failures: list[BaseException] = []
    changed = threading.Event()

    def announce(started: Started) -> None:
        ready.append(started)
        changed.set()

    def run() -> None:
        try:
            with closing(bind(config)) as sock:
                serve(config, sock, announce)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            failures.append(error)
            changed.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert changed.wait(TIMEOUT_S), "the server neither starts nor fails"
    if failures:
        thread.join(TIMEOUT_S)
        raise failures[0]
    server = ServerThread(ready[0])
    try:
        yield server
    finally:
        server.client.close()
        server.started.stop()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        assert failures == []


def with_template(folder: Path) -> Path:
    """The model in the box with a chat template, in ``folder``."""
    shutil.copytree(DEMO_MODEL, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


def texts_of(events: Sequence[dict[str, Any]]) -> dict[int, str]:
    """The texts that a stream of completions adds up to, by the index of the choice."""
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts
