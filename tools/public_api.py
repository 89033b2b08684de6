#!/usr/bin/env python3
"""List what plugins and programs may rely on: import names, signatures, members of classes; one a line, sorted.

    python tools/public_api.py > tests/contracts/public_api.txt

A test compares the list with that file. ``MODULES`` says what belongs to it: the public names that a module defines.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, TypeVar

import vllm_ext
from vllm_ext import contracts

INTERNAL = {
    "block_sizes",
    "call_check",
    "first_result",
    "groups",
    "parameter_checks",
    "platform_check",
    "qualname",
    "worker_check",
}
"""Modules of ``vllm_ext.contracts`` that are for vllm_ext itself."""

_CONTRACTS = [module.name for module in pkgutil.iter_modules(contracts.__path__) if module.name not in INTERNAL]

MODULES = (
    *(f"vllm_ext.contracts.{name}" for name in _CONTRACTS),
    "vllm_ext.errors",
    "vllm_ext.attention",
    "vllm_ext.attention.backends.registry",
    "vllm_ext.attention.layer",
    "vllm_ext.dispatch.bootstrap",
    "vllm_ext.distributed",
    "vllm_ext.distributed.parallel_state",
    "vllm_ext.layers.activation",
    "vllm_ext.layers.layernorm",
    "vllm_ext.layers.linear",
    "vllm_ext.layers.logits_processor",
    "vllm_ext.layers.rotary_embedding",
    "vllm_ext.layers.vocab_parallel_embedding",
    "vllm_ext.registry.models",
    "vllm_ext.testing",
    "vllm_ext.worker.sampling.sampler",
)
"""Besides ``vllm_ext`` itself. One that is gone is missing from the list, which the test notices."""


def lines(modules: Iterable[str] = MODULES) -> list[str]:
    """The whole list."""
    listed = [importlib.import_module(name) for name in modules if _exists(name)]
    homes = {module.__name__ for module in listed}
    found: set[str] = set()
    for module in listed:
        for name, value in _public(module):
            found |= set(describe(f"{module.__name__}.{name}", value))
    for module in (vllm_ext, *listed):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            home = value.__module__ if inspect.isclass(value) or inspect.isfunction(value) else None
            if home in homes and home != module.__name__:
                found.add(f"{module.__name__}.{name} = {home}.{value.__name__}")
            else:
                found |= set(describe(f"{module.__name__}.{name}", value))
    return sorted(found)


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What the module defines: classes, functions, constants, and objects of classes of vllm_ext."""
    for name, value in vars(module).items():
        if name.startswith("_") or inspect.ismodule(value) or isinstance(value, TypeVar):
            continue
        home = type(value).__module__
        if inspect.isclass(value) or inspect.isfunction(value):
            if value.__module__ == module.__name__:
                yield name, value
        elif home == module.__name__ or (
            name.isupper() and name != "TYPE_CHECKING" and home.split(".")[0] != "vllm_ext"
        ):
            yield name, value


def describe(name: str, value: Any) -> Iterator[str]:
    """Lines for one public name; of a class, also for what it has from other classes of vllm_ext."""
    if inspect.isclass(value):
        yield f"{name}{_signature(value)}"
        inherited = [cls for cls in value.__mro__[1:] if cls.__module__.startswith("vllm_ext")]
        for cls in reversed([value, *inherited]):
            yield from _members(name, cls)
    elif inspect.isfunction(value):
        yield f"{name}{_signature(value)}"
    elif type(value).__module__.startswith("vllm_ext"):
        yield f"{name}: {type(value).__module__}.{type(value).__qualname__}"
        if type(value).__name__.startswith("_"):
            yield from _members(name, type(value))
    else:
        yield f"{name}: {type(value).__name__}"


def _members(name: str, cls: type) -> Iterator[str]:
    if issubclass(cls, enum.Enum):
        yield from (f"{name}.{member}" for member in cls.__members__)
    for member, annotation in vars(cls).get("__annotations__", {}).items():
        if not member.startswith("_") or member == "_enum":
            yield f"{name}.{member}: {_unquoted(annotation)}"
    for member, value in vars(cls).items():
        if member.startswith("_") or (issubclass(cls, enum.Enum) and member in cls.__members__):
            continue
        if isinstance(value, property):
            yield f"{name}.{member} (property)"
        elif isinstance(value, classmethod | staticmethod) or inspect.isfunction(value):
            yield f"{name}.{member}{_signature(getattr(cls, member))}"


def _signature(value: Any) -> str:
    """With defaults as they print, without addresses; ``(...)`` where there is none to be had."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    parameters = [each.replace(annotation=_unquoted(each.annotation)) for each in signature.parameters.values()]
    returned = _unquoted(signature.return_annotation)
    text = str(signature.replace(parameters=parameters, return_annotation=returned))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


class _Text(str):
    """An annotation that is printed without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _unquoted(annotation: Any) -> Any:
    """As it is written; named tuples wrap theirs."""
    text = getattr(annotation, "__forward_arg__", annotation)
    return _Text(text) if isinstance(text, str) else annotation


def main() -> int:
    print("\n".join(lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
