"""Whether classes and methods of plugins can be called as the engine calls them, found out before it does.

One for an older vLLM may take more arguments, or fewer. What has no signature to read, such as compiled code, is taken:
what is wrong with it shows when it is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

from vllm_ext.errors import ContractError, dotted_path


def check_constructor(cls: type, keywords: Sequence[str], *, slot: str, source: str) -> None:
    """ContractError unless ``cls`` can be built with exactly these keywords; the text has all that does not fit."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
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
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        also = f", and the keywords {', '.join(keywords)}" if keywords else ""
        raise ContractError(
            f"{slot} class of {source}: {dotted_path(cls)} cannot be built: {error}. It is called with the "
            f"{len(arguments)} arguments {', '.join(arguments)}, by position{also}"
        ) from None


def check_method(
    cls: type, name: str, positional: Sequence[str], keywords: Collection[str] = (), *, slot: str, source: str
) -> None:
    """ContractError unless objects of ``cls`` have their method ``name`` called so; anything else than a method passes.

    Args:
        positional, keywords: as for :func:`misfit`.
        slot, source: what the class is for, and who gave it; for messages.
    """
    method = inspect.getattr_static(cls, name)
    if not inspect.isfunction(method):
        return
    if complaint := misfit(method, name, positional, keywords, receiver=("self",)):
        raise ContractError(f"{slot} class of {source}: {dotted_path(cls)} {complaint}")


def takes_keyword(method: Any, keyword: str) -> bool:
    """Whether ``method`` can be given ``keyword``; False where it has no signature to read.

    Of a decorated one, both what the decorator made and what it was made of have to take it: the first may pass on all
    that it is given.
    """
    try:
        signatures = [inspect.signature(method, follow_wrapped=follows) for follows in (False, True)]
    except (TypeError, ValueError):
        return False
    return all(
        keyword in signature.parameters or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        for signature in signatures
    )


def misfit(
    method: Any,
    name: str,
    positional: Sequence[str] = (),
    keywords: Collection[str] = (),
    *,
    receiver: Sequence[str] = (),
) -> str | None:
    """How ``method`` is defined and called, for messages; ``None`` where it can be called so.

    Of a decorated one, what the decorator made of it is what is called.

    Args:
        positional, keywords: the arguments. Those by position have names for messages; the method may have others.
        receiver: what comes before them where ``method`` is a function of a class: the object.
    """
    try:
        signature = inspect.signature(method, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*receiver, *positional, **dict.fromkeys(keywords))
    except TypeError as error:
        shown = ", ".join((*positional, *(f"{keyword}=..." for keyword in keywords)))
        return f"defines {name}{signature}, which is called as {name}({shown}): {error}"
    return None
