"""Settings from the command line, and from keywords of the Python interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vllm_ext.config.keys import Key, Setting, all_keys, all_sections, shorten, unknown_key, yaml_number
from vllm_ext.config.options import read_options
from vllm_ext.config.origin import Origin, OriginKind
from vllm_ext.config.paths import join_path, split_assignment, split_path
from vllm_ext.config.redaction import may_hold_secret
from vllm_ext.errors import ConfigError

_READ_AS: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", type(None): "null"}


class Override(NamedTuple):
    """A value from the command line or from a keyword: ``key`` is a dotted path, ``where`` names the option."""

    key: str
    value: Any
    where: str
    kind: OriginKind = "command line"


def parse_set(text: str) -> Override:
    """The override in ``KEY=VALUE``, as given to ``--set``; the value is read as YAML.

    Its ``where`` repeats the value only where no secret can be in it.

    Raises:
        ConfigError: it has another form.
    """
    from vllm_ext.config.yaml_file import find_misread, read_value

    assignment = split_assignment(text)
    if assignment is None:
        given = "a text that may hold a secret" if may_hold_secret("", text) else repr(text)
        raise ConfigError(f"command line (--set): expected KEY=VALUE, given {given}")
    key, value = assignment
    hidden = may_hold_secret(key, text)
    where = f"--set {key if hidden else text}"
    if fault := find_misread(value, may_be_shown=not hidden):
        raise ConfigError(f"command line ({where}): {key}: {fault}")
    try:
        return Override(key, read_value(value), where)
    except ValueError as error:
        what = (
            "the value is not a YAML value; quote it"
            if hidden
            else f"{shorten(repr(value))} is not a YAML value: {error}"
        )
        raise ConfigError(f"command line ({where}): {what}") from None


def read_override(override: Override, problems: list[str]) -> Iterator[Setting]:
    """The settings in ``override``: one, or several where it gives a mapping; what is wrong goes to ``problems``."""
    origin = Origin(override.kind, override.where)
    yield from _read(split_path(override.key), override.value, origin, problems)


def _read(parts: tuple[str, ...], value: Any, origin: Origin, problems: list[str]) -> Iterator[Setting]:
    path = join_path(parts)
    top = all_keys().get(parts[0])
    if top and top.is_mapping:
        yield from read_options(parts, value, origin, problems)
    elif path in all_sections() and isinstance(value, Mapping):
        for name, below in value.items():
            yield from _read((*parts, str(name)), below, origin, problems)
    elif path in all_sections():
        problems.append(f"{origin}: {path}: expected a mapping of keys to values, given {shorten(repr(value))}")
    elif path not in all_keys():
        problems.append(f"{origin}: {path}: {unknown_key(*_first_unknown(parts))}")
    else:
        key = all_keys()[path]
        try:
            yield Setting(parts, key.convert(list(value) if isinstance(value, tuple) else value), origin)
        except ValueError:
            problems.append(f"{origin}: {path}: {key.mismatch(value)}{_advice(key, value, origin)}")


def _advice(key: Key, value: Any, origin: Origin) -> str:
    """What to do where a list is due, or where YAML made something else of a word; begins with its own punctuation."""
    # Python has read a keyword.
    which = "which is" if origin.kind == "keyword" else "which YAML reads as"
    if key.secret:
        return ""
    if isinstance(value, str) and key.accepts(float) and (number := yaml_number(value)) is not None:
        return f", {which} a string; write {number}"
    if not (key.accepts(str) or key.accepts(list)):
        return ""
    if isinstance(value, str):
        return key.list_advice(value)
    words = value if isinstance(value, list) else [value]
    read_as = next((_READ_AS[type(word)] for word in words if type(word) in _READ_AS), None)
    if read_as is None:
        return ""
    # Where only a list of names may stand, a lone name in quotes would be refused as well.
    what = (
        "quote it" if isinstance(value, list) or key.accepts(str) else "write [] for none, or a list of names in quotes"
    )
    return f", {which} {read_as}; {what}"


def _first_unknown(parts: tuple[str, ...]) -> tuple[str, str]:
    """The longest beginning that exists, and the name that does not belong there."""
    known = ""
    for end, name in enumerate(parts, 1):
        path = join_path(parts[:end])
        if path not in all_sections() and path not in all_keys():
            return known, name
        known = path
    return known, ""
