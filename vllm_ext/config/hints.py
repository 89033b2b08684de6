"""What the annotation of a setting says, for people and for the sources that have to read a text."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def alternatives(hint: Any) -> list[Any]:
    """The members of a union, without the annotations around it; a number keeps its own limits."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(bare) in (Union, types.UnionType):
        return [part for member in get_args(bare) for part in alternatives(member)]
    return [hint if bare in (int, float) else bare]


def base(part: Any) -> Any:
    """The class of values that an alternative takes: ``list`` for ``list[str]``, ``int`` for one with limits."""
    if get_origin(part) is Annotated:
        return base(get_args(part)[0])
    return get_origin(part) or part


def metas(hint: Any) -> tuple[Any, ...]:
    """The annotations around ``hint``."""
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def describe(part: Any, beside_list: bool) -> str:
    """What values an alternative takes, in words; ``beside_list``: a list of them is taken, too."""
    kind = base(part)
    if kind is Literal:
        values = [str(value) for value in get_args(part)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if kind is str:
        return "a name" if beside_list else "a string"
    return _WORDS[kind] + _limits(part)


_WORDS = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list of names",
    dict: "a mapping of plugin names to mappings",
}


def _limits(part: Any) -> str:
    low, high = _limit(part, "ge"), _limit(part, "le")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    words = {"of at least": low, "above": _limit(part, "gt"), "of at most": high, "below": _limit(part, "lt")}
    given = [f"{word} {limit}" for word, limit in words.items() if limit is not None]
    return f" {' and '.join(given)}" if given else ""


def _limit(part: Any, name: str) -> Any:
    return next((limit for meta in metas(part) if (limit := getattr(meta, name)) is not None), None)
