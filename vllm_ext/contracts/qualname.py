"""Class paths: from ``package.module.Class`` to the class, checked against the contract it should keep."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from vllm_ext.errors import ContractError, dotted_path, innermost_cause

T = TypeVar("T")


def is_class_path(text: str) -> bool:
    """Whether it has the form of a class path, and not that of a plain name."""
    return "." in text or ":" in text


def resolve_class(qualname: Any, base: type[T], *, slot: str, source: str) -> type[T]:
    """Import the class that ``qualname`` names.

    Args:
        qualname: ``package.module.Class`` or ``package.module:Class``.
        base: what the class has to derive from.
        slot: what it is for, e.g. ``worker``; source: who named it, e.g. ``platform 'cpu'``; both for messages.

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
        raise ContractError(f"{slot} class of {source}: {qualname!r} is not a {wanted}")
    return found


def check_constructor(cls: type, keywords: Sequence[str], *, slot: str, source: str) -> None:
    """ContractError unless ``cls`` can be built with exactly these keywords; the text has all that does not fit."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):  # a class in C without a signature: what it takes shows when it is built
        return
    by_keyword = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    refused = [] if takes_any else [name for name in keywords if name not in by_keyword]
    required = [name for name, p in by_keyword.items() if p.default is p.empty and name not in keywords]
    faults = [f"does not take {name!r}" for name in refused] + [f"wants {name!r} besides" for name in required]
    if faults:
        raise ContractError(
            f"{slot} class of {source}: {dotted_path(cls)} cannot be built: its constructor "
            f"{', and '.join(faults)}. It is called with the keywords {', '.join(keywords)}"
        )


def check_positional(cls: Any, arguments: Sequence[str], keywords: Collection[str], *, slot: str, source: str) -> None:
    """ContractError unless ``cls`` is a class that can be built with so many arguments by position, and these keywords.

    Args:
        arguments: what they are, for messages; a parameter may have another name.
        slot, source: what the class is for, and who gave it; for messages.
    """
    if not isinstance(cls, type):
        raise ContractError(f"{slot} class of {source}: {cls!r} is no class")
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):  # a class in C without a signature: what it takes shows when it is built
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        also = f", and the keywords {', '.join(keywords)}" if keywords else ""
        raise ContractError(
            f"{slot} class of {source}: {dotted_path(cls)} cannot be built: {error}. It is called with the "
            f"{len(arguments)} arguments {', '.join(arguments)}, by position{also}"
        ) from None


def check_method(cls: type, name: str, keywords: Sequence[str], *, slot: str, source: str) -> None:
    """ContractError unless objects of ``cls`` have their method ``name`` called with exactly these keywords."""
    method = inspect.getattr_static(cls, name)
    if not inspect.isfunction(method):  # what it takes shows when it is called
        return
    try:
        # Of a decorated one, what the decorator made of it is what is called.
        inspect.signature(method, follow_wrapped=False).bind(None, **dict.fromkeys(keywords))
    except TypeError as error:
        raise ContractError(
            f"{slot} class of {source}: {name}() of {dotted_path(cls)} cannot be called: {error}. It is called with "
            f"the keywords {', '.join(keywords)}"
        ) from None
