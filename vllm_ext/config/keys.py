"""The keys of the settings, read off the structs in :mod:`vllm_ext.config.schema`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import msgspec

from vllm_ext.config.hints import alternatives, base, describe, metas
from vllm_ext.config.origin import Origin
from vllm_ext.config.paths import join_path
from vllm_ext.config.schema import Settings
from vllm_ext.errors import did_you_mean, listing

REDACTED = "********"
"""What is shown instead of a secret."""
_SHOWN = 60
"""Characters of a wrong value that a message repeats at most."""


class Setting(NamedTuple):
    """A value that a source gives to a key; below ``options`` a key has more parts than the schema knows."""

    parts: tuple[str, ...]
    value: Any
    origin: Origin

    @property
    def path(self) -> str:
        return join_path(self.parts)


class Key(msgspec.Struct, frozen=True):
    """A setting that has a value: ``path`` is dotted, ``hint`` its annotation."""

    path: str
    hint: Any
    default: Any
    description: str

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.path.split("."))

    @property
    def choices(self) -> tuple[Any, ...]:
        """Words with a meaning of their own that the type names."""
        literals = [part for part in alternatives(self.hint) if base(part) is Literal]
        return tuple(value for literal in literals for value in get_args(literal))

    @property
    def secret(self) -> bool:
        """Whether its value must not be shown."""
        return any((meta.extra or {}).get("secret", False) for meta in metas(self.hint))

    @property
    def is_mapping(self) -> bool:
        """Whether keys that the schema does not know stand below it."""
        return self.accepts(dict)

    def accepts(self, kind: type | None) -> bool:
        """Whether values of ``kind``, such as ``list``, are among those it takes; ``None`` stands for null."""
        return (type(None) if kind is None else kind) in [base(part) for part in alternatives(self.hint)]

    @property
    def expected(self) -> str:
        """What values it takes, for people."""
        texts = [describe(part, self.accepts(list)) for part in alternatives(self.hint)]
        if self.default == "auto" and "auto" not in self.choices:
            texts.insert(0, "auto")
        return ", or ".join(texts)

    def convert(self, value: Any) -> Any:
        """``value`` in the key's type; ValueError if it does not fit."""
        try:
            converted = msgspec.convert(value, self.hint)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error
        if isinstance(converted, float) and not math.isfinite(converted):
            raise ValueError(f"{converted} is no number to work with")
        return converted

    def takes(self, value: Any) -> bool:
        """Whether ``value`` fits the key."""
        try:
            self.convert(value)
        except ValueError:
            return False
        return True

    def mismatch(self, value: Any, given: str = "") -> str:
        """Text for a ``value`` that does not fit; ``given`` is how to show it where its ``repr`` is not right."""
        shown = REDACTED if self.secret else given or shorten(repr(value))
        hint = did_you_mean(value, self.choices) if isinstance(value, str) else ""
        return f"expected {self.expected}, given {shown}{hint}"

    def list_advice(self, text: str) -> str:
        """How to write ``text`` where a list is due; empty where it is long, or nearly a word that may stand there."""
        if not self.accepts(list) or len(text) > _SHOWN or did_you_mean(text, self.choices):
            return ""
        return f"; write [{', '.join(part.strip() for part in text.split(','))}]"


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
    if key := all_keys().get(section):
        return f"unknown key; {section} has no keys below it: it is {key.expected}"
    hint = _instead_of_vllms(section, name)
    # The same name elsewhere is likelier than one that is merely like it.
    if not hint and (elsewhere := [path for path in all_keys() if path.split(".")[-1] == name]):
        hint = f" (did you mean {' or '.join(map(repr, elsewhere))}?)"
    hint = hint or did_you_mean(name, children(section))
    where = f"keys of {section!r}" if section else "keys"
    return f"unknown key{hint}; {where}: {listing(children(section))}"


def _instead_of_vllms(section: str, name: str) -> str:
    """What does here what ``name`` does in vLLM, in brackets; empty for a name that is none of vLLM's."""
    from vllm_ext.config.vllm_names import INSTEAD

    return f" (in place of vLLM's: {INSTEAD[name]})" if section in ("", "engine") and name in INSTEAD else ""


def shorten(text: str) -> str:
    """``text``, cut where it is too long for a message."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def yaml_number(text: str) -> str | None:
    """``text`` as YAML has it written to read a number there; ``None`` where it is no finite number."""
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    # YAML 1.1 takes an exponent for one only after a point.
    mantissa, sign, exponent = repr(number).partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{sign}{exponent}"


def _walk(struct: type[msgspec.Struct], prefix: str) -> Iterator[Key]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint, path = hints[field.name], f"{prefix}{field.name}"
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _walk(hint, f"{path}.")
            continue
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        description = next((meta.description for meta in metas(hint) if meta.description), "")
        yield Key(path, hint, default, description)
