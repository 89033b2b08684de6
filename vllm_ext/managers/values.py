"""What an entry point's value becomes: checked against the form and the contract of its kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from vllm_ext.contracts import io_processor, stat_logger
from vllm_ext.contracts.call_check import check_method, check_positional
from vllm_ext.contracts.groups import IO_PROCESSOR, PLATFORM, STAT_LOGGER
from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.errors import ContractError, Unavailable, dotted_path
from vllm_ext.managers.host_contracts import (
    check_path_for_vllm,
    contracts_of,
    hint_of_vllm,
    is_for_vllm,
    kind_of,
    source_of,
)
from vllm_ext.plan import Decision


def use(decision: Decision, plugin: Any, options: Mapping[str, Any], host: str) -> Any:
    """Do with a loaded entry point what its kind says.

    Args:
        options: the plugin's own, handed to a callable that takes ``config``.
        host: whose contract it has to keep: that of vllm_ext, or vLLM's own.

    Returns: of a hook ``None``, of a class path or a class the class, of a factory the object.

    Raises:
        ContractError: the value or what it gives has another form than its kind's.
        Unavailable: the plugin declined. Whatever else the plugin raises passes.
    """
    kind = kind_of(decision)
    if kind.form == "hook":
        if isinstance(plugin, ModuleType) and not is_for_vllm(decision, host):
            return None  # its import was the run
        return _call(decision, plugin, options, host)
    if kind.form == "class":
        return _check_class(decision, plugin, host)
    if kind.form == "class path":
        _check_is_no_class(decision, plugin, host)
    result = _call(decision, plugin, options, host)
    if kind.form == "factory":
        return _check_object(decision, result, host)
    if result is None:
        raise Unavailable("it returned None: not for this machine" if kind is PLATFORM else "it returned None")
    if is_for_vllm(decision, host):
        check_path_for_vllm(decision, result)
    cls = resolve_class(
        result,
        contracts_of(decision, host)[0],
        slot=kind.title,
        source=source_of(decision),
        hint=lambda found: hint_of_vllm(decision, found),
    )
    return _check_is_whole(decision, cls, host)


def accepts_config(plugin: Callable[..., Any]) -> bool:
    """Whether a callable has a parameter ``config``, so that options can be handed to it."""
    try:
        parameter = inspect.signature(plugin).parameters.get("config")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _call(decision: Decision, plugin: Any, options: Mapping[str, Any], host: str) -> Any:
    is_vllms = is_for_vllm(decision, host)
    if callable(plugin):
        # vLLM has nothing to hand over.
        result = plugin(config=dict(options)) if accepts_config(plugin) and not is_vllms else plugin()
        _check_has_run(decision, result)
        return result
    what = "neither callable nor a module" if kind_of(decision).form == "hook" else "not callable"
    if is_vllms:
        what = "not callable, and vLLM calls it"
    raise ContractError(f"{source_of(decision)}: {decision.value!r} is {what}, but {plugin!r}", plugin=decision.name)


def _check_has_run(decision: Decision, result: Any) -> None:
    """Of an ``async def``, and of a function with ``yield``, a call runs nothing."""
    if inspect.iscoroutine(result):
        what = "a coroutine"
    elif inspect.isgenerator(result) or inspect.isasyncgen(result):
        what = "a generator"
    else:
        return
    if not inspect.isasyncgen(result):
        # Else Python warns, at some later time, of a coroutine that nobody awaited.
        result.close()
    raise ContractError(
        f"{source_of(decision)}: {decision.value!r} returned {what}, so that nothing of it has run; "
        "it has to be an ordinary function, without async and yield",
        plugin=decision.name,
    )


def _check_class(decision: Decision, plugin: Any, host: str) -> Any:
    contracts = contracts_of(decision, host)
    if not isinstance(plugin, type) or not issubclass(plugin, contracts):
        raise ContractError(
            f"{source_of(decision)}: {decision.value!r} is not a subclass of {' or '.join(map(dotted_path, contracts))}"
            f", but {plugin!r}{hint_of_vllm(decision, plugin)}",
            plugin=decision.name,
        )
    return _check_is_whole(decision, plugin, host)


def _check_is_whole(decision: Decision, cls: Any, host: str) -> Any:
    """Python would say what the class lacks where an engine makes an object of it, which a mere load does not try."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ContractError(
            f"{source_of(decision)}: {dotted_path(cls)} does not implement {', '.join(missing)}; "
            f"{dotted_path(contracts_of(decision, host)[0])} says what each has to do",
            plugin=decision.name,
        )
    if not is_for_vllm(decision, host):
        _check_calls(decision, cls)
    return cls


def _check_calls(decision: Decision, cls: type) -> None:
    """A class for an older vLLM may take fewer arguments: of these kinds that is said here, and not when it is used."""
    where = {"slot": kind_of(decision).title, "source": source_of(decision)}
    if decision.kind == IO_PROCESSOR.key:
        check_positional(cls, io_processor.CONSTRUCTOR_ARGUMENTS, (), **where)
    elif decision.kind == STAT_LOGGER.key:
        check_positional(cls, stat_logger.CONSTRUCTOR_ARGUMENTS, (), **where)
        check_method(cls, "record", (), stat_logger.RECORD_KEYWORDS, **where)


def _check_is_no_class(decision: Decision, plugin: Any, host: str) -> None:
    """A class that stands where its path is to be returned would be built, and fail for reasons of its own."""
    if isinstance(plugin, type) and issubclass(plugin, contracts_of(decision, host)):
        raise ContractError(
            f"{source_of(decision)}: {decision.value!r} is the class itself; the entry point has to name a function "
            f"that returns the class path, {dotted_path(plugin)!r}",
            plugin=decision.name,
        )


def _check_object(decision: Decision, result: Any, host: str) -> Any:
    """A protocol's members have to be there; which are not is in the error."""
    (contract,) = contracts_of(decision, host)
    members = (*contract.__annotations__, *(name for name in vars(contract) if not name.startswith("_")))
    missing = [name for name in members if not hasattr(result, name)]
    if missing:
        raise ContractError(
            f"{source_of(decision)}: {decision.value!r} returned {result!r}, which has no {', '.join(missing)}; "
            f"it has to keep {dotted_path(contract)}",
            plugin=decision.name,
        )
    return result
