"""Class paths: from ``package.module.Class`` to the class, checked against the contract it should keep."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from vllm_ext.errors import ContractError, dotted_path, innermost_cause

T = TypeVar("T")


def is_class_path(text: str) -> bool:
    """Whether it has the form of a class path, and not that of a plain name."""
    return "." in text or ":" in text


def resolve_class(
    qualname: Any, base: type[T], *, slot: str, source: str, hint: Callable[[Any], str] = lambda found: ""
) -> type[T]:
    """Import the class that ``qualname`` names.

    Args:
        qualname: ``package.module.Class`` or ``package.module:Class``.
        base: what the class has to derive from.
        slot: what it is for, e.g. ``worker``; source: who named it, e.g. ``platform 'cpu'``; both for messages.
        hint: what to add to the message about something else that was found.

    Raises:
        ContractError: the path has another form, cannot be imported, or names something else.
    """
    if not isinstance(qualname, str) or not qualname.strip():
        raise ContractError(f"{slot} class of {source}: expected a class path 'package.module.Class', got {qualname!r}")
    separator = ":" if ":" in qualname else "."
    module, _, name = qualname.rpartition(separator)
    if not module or not name.isidentifier():
        raise ContractError(f"{slot} class of {source}: {qualname!r} is not a class path 'package.module.Class'")
    try:
        found = getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ContractError(
            f"{slot} class of {source}: {qualname!r} cannot be imported: {innermost_cause(error)}"
        ) from error
    if not isinstance(found, type) or not issubclass(found, base):
        wanted = "class" if base is object else f"subclass of {dotted_path(base)}"
        raise ContractError(f"{slot} class of {source}: {qualname!r} is not a {wanted}{hint(found)}")
    return found
