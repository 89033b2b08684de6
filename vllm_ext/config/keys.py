"""The keys of the settings, read off the structs in :mod:`vllm_ext.config.schema`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from vllm_ext.config.origin import Origin
from vllm_ext.config.schema import Settings
from vllm_ext.errors import did_you_mean, listing


class Setting(NamedTuple):
    """A value that a source gives to a key."""

    path: str
    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True)
class Key:
    """A setting that has a value: ``path`` is dotted, ``hint`` its annotation."""

    path: str
    hint: Any
    default: Any
    description: str

    @property
    def choices(self) -> tuple[Any, ...]:
        """Words with a meaning of their own that the type names."""
        literals = [part for part in _alternatives(self.hint) if get_origin(part) is Literal]
        return tuple(value for literal in literals for value in get_args(literal))

    @property
    def accepts_list(self) -> bool:
        return any(get_origin(part) is list for part in _alternatives(self.hint))

    @property
    def accepts_string(self) -> bool:
        return str in _alternatives(self.hint)

    @property
    def accepts_null(self) -> bool:
        return type(None) in _alternatives(self.hint)

    @property
    def expected(self) -> str:
        """What values it takes, for people."""
        texts = [_describe(part, self.accepts_list) for part in _alternatives(self.hint)]
        if self.default == "auto" and "auto" not in self.choices:
            texts.insert(0, "auto")
        return ", or ".join(texts)

    def convert(self, value: Any) -> Any:
        """``value`` in the key's type; ValueError if it does not fit."""
        try:
            return msgspec.convert(value, self.hint)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error


@cache
def all_keys() -> dict[str, Key]:
    """Every setting by its path, in the order of the schema."""
    return {key.path: key for key in _walk(Settings, "")}


@cache
def all_sections() -> frozenset[str]:
    """Paths of the mappings that hold settings; the whole is the empty path."""
    return frozenset({""}.union(path[:end] for path in all_keys() for end, sign in enumerate(path) if sign == "."))


def children(section: str) -> list[str]:
    """Names that may stand in the mapping ``section``."""
    prefix = f"{section}." if section else ""
    return list(dict.fromkeys(path[len(prefix) :].split(".")[0] for path in all_keys() if path.startswith(prefix)))


def unknown_key(section: str, name: str) -> str:
    """Text for a name that does not belong into ``section``."""
    hint = did_you_mean(name, children(section))
    if not hint and (elsewhere := [path for path in all_keys() if path.split(".")[-1] == name]):
        hint = f" (did you mean {' or '.join(map(repr, elsewhere))}?)"
    where = f"keys of {section!r}" if section else "keys"
    return f"unknown key{hint}; {where}: {listing(children(section))}"


def _walk(struct: type[msgspec.Struct], prefix: str) -> Iterator[Key]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint, path = hints[field.name], f"{prefix}{field.name}"
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _walk(hint, f"{path}.")
            continue
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        yield Key(path, hint, default, _description(hint))


def _description(hint: Any) -> str:
    metas = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((meta.description for meta in metas if meta.description), "")


def _alternatives(hint: Any) -> list[Any]:
    """The members of a union, without the annotations around it; a member keeps its own limits."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(bare) in (Union, types.UnionType):
        return [part for member in get_args(bare) for part in _alternatives(member)]
    return [hint if bare is int else bare]


def _describe(part: Any, beside_list: bool) -> str:
    if part is type(None):
        return "null"
    if part is str:
        return "a name" if beside_list else "a string"
    if get_origin(part) is Literal:
        values = [str(value) for value in get_args(part)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if get_origin(part) is list:
        return "a list of names"
    return "a whole number" + _limits(part)


def _limits(part: Any) -> str:
    metas = get_args(part)[1:]
    low = next((meta.ge for meta in metas if meta.ge is not None), None)
    high = next((meta.le for meta in metas if meta.le is not None), None)
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return "" if low is None else f" of at least {low}"
