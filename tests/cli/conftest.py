"""Commands as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from vllm_ext.cli.main import main


class Done(NamedTuple):
    """What a command left: its exit code, standard output (parsed, where JSON was asked for) and standard error."""

    code: int
    out: Any
    err: str


@pytest.fixture
def vllm_ext(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run ``vllm-ext`` in this process."""

    def vllm_ext(*arguments: object) -> Done:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        is_json = "json" in arguments and captured.out
        return Done(code, json.loads(captured.out) if is_json else captured.out, captured.err)

    return vllm_ext
