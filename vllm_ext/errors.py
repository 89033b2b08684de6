"""Every exception that vllm_ext raises on purpose.

::

    VllmExtError
    ├── ConfigError              a setting, file, variable or option is wrong
    ├── PluginError
    │   ├── PluginNotFound       a named plugin that no distribution provides
    │   ├── AmbiguousPlugin      a name, or an automatic choice, that fits several plugins
    │   ├── IncompatiblePlugin   a named plugin whose requirement on the host is not met
    │   ├── PluginLoadError      a named plugin that failed
    │   ├── PlatformUnavailable  no platform of those asked for could be activated
    │   ├── PlanMismatch         a process of an engine would not run the same plugins as the others
    │   ├── ContractError        a plugin's object does not keep the contract of its kind
    │   └── RegistrationError    a registration that cannot be accepted
    ├── Unavailable              raised by a plugin: not usable here, and why
    ├── ModelError
    │   ├── UnsupportedModel     an architecture or a feature that nothing registered supports
    │   ├── CheckpointError      a model directory with missing, truncated or unfitting parts
    │   └── TokenizerError       a tokenizer that is missing or cannot be read
    ├── CollectiveError          tensors or ranks that a collective cannot work with
    ├── InvalidRequest           a prompt or a sampling parameter out of range
    │   └── RefusedByServer      a request over HTTP that is refused before the engine has it
    └── EngineError              the engine cannot be started, or cannot go on
        └── WorkerError          a worker process failed, or is gone

``exit_code`` is what the command line returns for an error that reaches it: 1 a finding, 2 wrong input,
3 no platform.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

_MAX_LINE = 500
"""Characters of a foreign text that are shown in one line."""


class VllmExtError(Exception):
    """Base of all errors of vllm_ext; its text is meant for the user."""

    exit_code = 1
    remote_traceback: str | None = None
    """Of an error that another process raised: the traceback there, where code that is not vllm_ext's is behind it."""


class ConfigError(VllmExtError, ValueError):
    """A setting is unknown, has the wrong type, or names something that does not exist.

    ``problems`` has each mistake by itself, where a text is about several.
    """

    exit_code = 2

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class PluginError(VllmExtError):
    """A plugin cannot be used; ``plugin`` names it where one is to blame.

    ``outcomes`` has what became of the plugins that were loaded: those of them that failed have their traceback there.
    """

    def __init__(self, message: str, *, plugin: str | None = None, outcomes: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.outcomes = tuple(outcomes)


class PluginNotFound(PluginError, LookupError):
    """A plugin that was named is not installed."""

    exit_code = 2


class AmbiguousPlugin(PluginError):
    """A name stands for several plugins, or several platforms could be chosen."""

    exit_code = 2


class IncompatiblePlugin(PluginError):
    """A plugin that was named requires another version of vllm_ext or of vLLM than is here."""


class PluginLoadError(PluginError):
    """A plugin that was named failed to import, to run, or to give the right kind of value."""


class PlatformUnavailable(PluginError):
    """No platform of those asked for activated on this machine."""

    exit_code = 3


class PlanMismatch(PluginError):
    """A process that joins an engine would not run what the others run."""


class ContractError(PluginError, TypeError):
    """A plugin handed over an object that does not keep the contract of its kind."""


class RegistrationError(PluginError, TypeError, ValueError):
    """A model, op or backend was registered in a form that cannot be accepted."""


class Unavailable(VllmExtError):
    """Raised by a platform's entry point to decline, with the reason a user should read."""


class ModelError(VllmExtError):
    """A model directory cannot be served."""

    exit_code = 2


class UnsupportedModel(ModelError):
    """No registered model implements what the model directory asks for."""


class CheckpointError(ModelError):
    """A file of a model directory is missing, damaged, or does not fit the model."""


class TokenizerError(ModelError):
    """The tokenizer of a model directory is missing or cannot be read."""


class CollectiveError(VllmExtError, ValueError):
    """A collective was asked for with tensors, sizes or ranks that do not fit its group."""


class InvalidRequest(VllmExtError, ValueError):
    """A prompt or a sampling parameter is not acceptable."""

    exit_code = 2


class RefusedByServer(InvalidRequest):
    """A request over HTTP is refused: ``status`` is HTTP's, ``param`` the field at fault, where it is one."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


class EngineError(VllmExtError, RuntimeError):
    """The engine cannot start, or a step failed; ``request_ids`` are those of the requests that the step ended."""

    def __init__(self, message: str, *, request_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.request_ids = tuple(request_ids)


class WorkerError(EngineError):
    """A process of an engine raised an error, or ended; ``rank`` is the worker's."""

    def __init__(self, message: str, *, rank: int | None = None, request_ids: Sequence[str] = ()) -> None:
        super().__init__(message, request_ids=request_ids)
        self.rank = rank


def plugin_traceback(error: BaseException) -> str:
    """The traceback of the plugin's, or another's, code that is behind ``error``; empty where none is."""
    if texts := [outcome.traceback for outcome in getattr(error, "outcomes", ()) if outcome.traceback]:
        return "".join(texts)
    cause = error.__cause__
    for each in (error, cause):
        if isinstance(each, VllmExtError) and each.remote_traceback:
            return each.remote_traceback
    is_plugins = isinstance(error, PluginError) or (
        isinstance(error, EngineError) and not isinstance(cause, VllmExtError)
    )
    return "".join(traceback.format_exception(cause)) if is_plugins and cause is not None else ""


def listing(names: Iterable[str]) -> str:
    """``a, b, c`` in sorted order, or ``none``: the part of a message that says what exists.

    Empty names, which broken metadata may have, are left out.
    """
    return ", ".join(printable(name) for name in sorted(names) if name) or "none"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``known``, or an empty string when none is close."""
    others = {other.casefold(): other for other in known if other != name}
    close = difflib.get_close_matches(name.casefold(), others, n=1)
    return f" (did you mean {others[close[0]]!r}?)" if close else ""


def dotted_path(cls: type) -> str:
    """``module.Class``, the class path by which settings name it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def innermost_cause(error: BaseException) -> str:
    """One line for the error at the bottom of the chain: ``TypeName: message``."""
    error = causes_of(error)[0]
    text = one_line(message_of(error)) + _where_contracts_are(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def causes_of(error: BaseException) -> list[BaseException]:
    """The chain of what led to the error, innermost first; it itself is the last."""
    chain = [error]
    while (deeper := _deeper(chain[0])) is not None and all(deeper is not known for known in chain):
        chain.insert(0, deeper)
    return chain


def _where_contracts_are(error: BaseException) -> str:
    """What to do where code uses vLLM's modules or ops, as vLLM's documentation has it, and they are not there."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    is_vllms = name == "vllm" or name.startswith("vllm_ext.")
    if is_vllms:
        return " (for this engine, import what plugins are made of from vllm_ext)"
    is_vllms_op = isinstance(error, AttributeError) and message_of(error).startswith("'_OpNamespace' 'vllm' object")
    return " (what direct_register_custom_op() defines is under torch.ops.vllm_ext here)" if is_vllms_op else ""


def _deeper(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def one_line(text: str) -> str:
    """The first line of ``text``, cut where it is too long for a line, with escapes for what no terminal should get."""
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    return printable(line[:_MAX_LINE]) + ("..." if len(line) > _MAX_LINE else "")


def printable(text: str, kept: str = "") -> str:
    """``text`` with escapes for what no terminal should get, such as commands to it; the signs in ``kept`` stay."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign in kept else sign.encode("unicode_escape").decode() for sign in text
    )


def message_of(error: BaseException) -> str:
    """The error's own text; plugins raise exceptions that cannot even be printed, or that exit when they are."""
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - what it raises is not the error that is reported
        return "its message cannot be read"
