"""A short run of the embedded engine in a process of its own, with a time limit, for a check to look at."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

import msgspec

from vllm_ext.check.rows import Result
from vllm_ext.config import Config
from vllm_ext.config.origin import Origin
from vllm_ext.config.redaction import scrub, secrets_in
from vllm_ext.errors import EngineError
from vllm_ext.managers.new_python import KEPT_OUTPUT_BYTES, describe_end, end_group, has_ended, start_python

ORIGIN = Origin("command line", "vllm-ext check")
"""Of the settings that a trial needs as they are."""

_MAIN = "from vllm_ext.check.trial_main import main; main()"
_START_S = 120.0
"""What the import of torch may take, before the time limit begins; much, for a machine that is busy."""
_GRACE_S = 5.0
"""The process ends itself at the time limit, with its stack; one that cannot is killed so much later."""


class Wanted(msgspec.Struct, frozen=True):
    """What a trial is to generate, greedily and then, where ``with_draws``, by drawing as well."""

    prompts: tuple[str, ...]
    max_tokens: int
    with_leads: bool = False
    """Whether to ask for log probabilities, which not every worker has."""
    with_draws: bool = False
    with_server: bool = False
    """Whether a server is prepared with the engine, up to where it would listen; nothing is generated then."""


class Completion(msgspec.Struct, frozen=True):
    """The greedy completion of one prompt."""

    num_prompt_tokens: int
    token_ids: tuple[int, ...]
    leads: tuple[float, ...] = ()
    """As :func:`leads_of` has them."""


class Trial(msgspec.Struct, frozen=True):
    """What became of a trial."""

    completions: tuple[Completion, ...] = ()
    max_num_batched_tokens: int = 0
    """In force when the engine ran, after the platform's hooks."""
    routes: tuple[str, ...] = ()
    """Of endpoint plugins, such as ``GET /health``."""
    warnings: tuple[str, ...] = ()
    """What was logged at that level or above."""
    failure: str = ""
    """One line; empty where the run ended well."""
    failure_is: Result = "fail"
    """What the failure is for a check: a warning where a plugin declined, ``skipped`` where the model is of no use."""
    output: str = ""
    """The end of what was written to standard output and error."""


def with_settings(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with other values for some keys, which count as given on the command line."""
    settings: Any = config.settings
    for key, value in changes.items():
        settings = _replaced(settings, key.split("."), value)
    return msgspec.structs.replace(
        config, settings=settings, origins={**config.origins, **dict.fromkeys(changes, ORIGIN)}
    )


def run_trial(config: Config, wanted: Wanted, timeout_s: float) -> Trial:
    """Start an engine with these settings in a new process, let it generate, and end it.

    Args:
        timeout_s: seconds for all of it, once torch is imported there.

    Raises:
        EngineError: no process can be started.
    """
    values = {"config": config, "wanted": wanted, "timeout_s": timeout_s}
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as result:
        request.write(msgspec.json.encode(values))
        request.seek(0)
        code = _run(request, output, result, timeout_s)
        text = scrub(_end_of(output), secrets_in(config.settings))
        result.seek(0)
        if told := result.read():
            return msgspec.structs.replace(msgspec.json.decode(told, type=Trial), output=text)
    return Trial(failure=describe_end(code, text, timeout_s), output=text)


def _run(request: IO[bytes], output: IO[bytes], result: IO[bytes], timeout_s: float) -> int | None:
    """Wait for the process; returns its exit code, ``None`` where it was killed for being too late."""
    try:
        process = start_python(
            _MAIN, [str(result.fileno())], stdin=request, stdout=output, stderr=output, pass_fds=(result.fileno(),)
        )
    except OSError as error:
        raise EngineError(f"no process can be started for a trial: {error}") from error
    is_late = True
    try:
        limit = time.monotonic() + _START_S + timeout_s + _GRACE_S
        while is_late and time.monotonic() < limit:
            time.sleep(0.02)
            is_late = not has_ended(process)
    finally:
        code = end_group(process)
    return None if is_late else code


def _end_of(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - KEPT_OUTPUT_BYTES))
    return output.read().decode("utf-8", "replace")


def _replaced(struct: Any, parts: Sequence[str], value: Any) -> Any:
    if len(parts) > 1:
        value = _replaced(getattr(struct, parts[0]), parts[1:], value)
    return msgspec.structs.replace(struct, **{parts[0]: value})
