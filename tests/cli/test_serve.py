"""``vllm-ext serve``: how it starts, says where it is, and ends."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

README = (Path(__file__).parent.parent.parent / "README.md").read_text()
(SHOWN,) = re.findall(r"^```sh\n(vllm-ext serve.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMAND, REQUEST = SHOWN.splitlines()
TIMEOUT_S = 60


@contextmanager
def started(*arguments):
    """The README's command in a process, on a free port, and the URL that it says."""
    command = [sys.executable, "-m", "vllm_ext", *shlex.split(COMMAND)[1:], "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert line.startswith("serving at http://127.0.0.1:"), line + process.stderr.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def end_of(process):
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def stream(url, client, num_tokens):
    body = {"prompt": "It was", "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    return client.stream("POST", f"{url}/v1/completions", json=body)


def test_the_readmes_request_is_answered_and_a_signal_lets_a_stream_end_before_the_server_does():
    program, *options = shlex.split(REQUEST)
    (target,) = (option for option in options if option.startswith("http://127.0.0.1:8000/"))
    header, body = (options[options.index(name) + 1] for name in ("-H", "-d"))

    with started() as (process, url), httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        path = httpx2.URL(target).path
        answer = client.post(url + path, content=body, headers=dict([header.split(": ")]))
        with stream(url, client, 20) as events:
            lines = events.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        ended = end_of(process)

    assert program == "curl"
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == json.loads(body)["max_tokens"]
    assert first.startswith("data: {")
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert ended == (143, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_other_signals_end_it_with_their_code(number, code):
    with started() as (process, _):
        process.send_signal(number)

        assert end_of(process) == (code, "", "")


@pytest.mark.slow
def test_a_second_interrupt_does_not_wait_for_requests():
    with (
        started() as (process, url),
        httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as client,
        stream(url, client, 500) as events,
    ):
        next(events.iter_lines())
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        code, out, _ = end_of(process)

    assert (code, out) == (130, "")


def test_a_port_that_is_taken_is_wrong_input_and_no_model_is_loaded(vllm_ext):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = vllm_ext("serve", "--port", port, "--model", "/nowhere")

    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"ERROR: server.port (command line (--port)): cannot listen on port {port} of 127.0.0.1: Address already in "
        "use; give another port, or 0 for any free one\n"
    )


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 70])
def test_a_host_that_is_not_this_machine_is_wrong_input(vllm_ext, host):
    done = vllm_ext("serve", "--host", host, "--port", "0")

    assert (done.code, done.out) == (2, "")
    assert host in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(vllm_ext, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)

    done = vllm_ext("serve")

    assert (done.code, done.out) == (2, "")
    assert done.err == f"ERROR: serve needs {missing}; pip install 'vllm-ext[server]'\n"


def test_a_named_plugin_that_fails_ends_the_start_with_its_traceback(vllm_ext, plugins):
    plugins.distribution(
        "acme", {"vllm.endpoint_plugins": ["acme = acme:Endpoint"]}, {"acme.py": "def Endpoint(): 1 / 0"}
    )

    done = vllm_ext("serve", "--port", "0", "--set", "plugins.endpoint.enabled=[acme]", "--platform", "cpu")

    assert (done.code, done.out) == (1, "")
    assert "ERROR: endpoint plugin 'acme' of acme 0.1 failed: ZeroDivisionError: division by zero" in done.err
    assert "def Endpoint(): 1 / 0" in done.err
