"""What can be said about the nodes of a YAML document, before any value is built from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vllm_ext.config.keys import Key, shorten, yaml_number
from vllm_ext.config.options import not_carried
from vllm_ext.config.paths import join_path
from vllm_ext.config.redaction import may_hold_secret

_TAG = "tag:yaml.org,2002:"
BOOL, DATE, MAP, MERGE, NULL, STR = (_TAG + name for name in ("bool", "timestamp", "map", "merge", "null", "str"))
_VALUE = f"{_TAG}value"
_PLAIN_TAGS = frozenset({BOOL, DATE, MAP, MERGE, NULL, STR, _VALUE, *(_TAG + name for name in ("int", "float", "seq"))})
_READ_AS = {BOOL: "a boolean", NULL: "null", DATE: "a date", MERGE: "a sign to merge", _VALUE: "a sign of its own"}
_NO_VALUES = (DATE, MERGE, _VALUE)
_OTHERWISE = re.compile(r"[-+]?(0[0-7_]+|[^:]+:.*)")
"""Numbers of another base, without a sign of it: 0777 is 511 in YAML 1.1, and 1:30 is 90."""
_MAX_VALUES = 100_000

ENDLESS = f"holds itself, or more than {_MAX_VALUES} values"
"""Text for a node that :func:`is_endless`."""


class Fault(NamedTuple):
    """Something that is wrong with a value, and the node to blame."""

    node: Node
    path: str
    text: str


def find_foreign(node: Node) -> Node | None:
    """The first node whose tag could build something else than plain values."""
    return next((below for below in _unique(node, set()) if below.tag not in _PLAIN_TAGS), None)


def find_faults(node: Node, parts: tuple[str, ...]) -> Iterator[Fault]:
    """What keeps the free value at ``parts`` from being plain: tags, keys that are no strings or stand twice, dates."""
    if is_endless(node):
        yield Fault(node, join_path(parts), ENDLESS)
    else:
        yield from _faults(node, parts, set())


def is_endless(node: Node) -> bool:
    """Whether the values that the node stands for, with its aliases resolved, are too many to be copied."""
    return _weight(node, {}) > _MAX_VALUES


def find_twice(root: Node) -> Node | None:
    """The first key below ``root`` that stands twice in its mapping."""
    mappings = (node for node in _unique(root, set()) if isinstance(node, MappingNode))
    return next((key for mapping in mappings for key, _ in _duplicates(mapping)), None)


def construct(node: Node) -> Any:
    """The value of a node without foreign tags; ValueError where it is none."""
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    # What PyYAML raises where an explicit tag does not fit: "!!bool x", "!!int ''", "!!timestamp x", "? [a] : b".
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(getattr(error, "problem", None) or str(error)) from error


def merged_pairs(mapping: MappingNode) -> list[tuple[ScalarNode, Node]]:
    """Keys and values of a free mapping without faults, with those that ``<<`` brings in."""
    yaml.SafeLoader("").flatten_mapping(mapping)
    return list({key.value: (key, below) for key, below in mapping.value}.values())


def line_of(node: Node) -> int:
    """The node's line in its file, from 1."""
    return int(node.start_mark.line) + 1


def refused(node: Node) -> str:
    """Text for a node with a foreign tag."""
    return f"the tag {node.tag!r} is refused; settings are plain values"


def given(node: Node) -> str:
    """The node as a message repeats it."""
    if isinstance(node, SequenceNode):
        return "a list"
    if isinstance(node, MappingNode):
        return "a mapping"
    return repr(shorten(str(node.value)))


def advice(key: Key, node: Node, *, in_list: bool = False) -> str:
    """What to do where a list is due, or YAML made something else of a scalar; begins with its own punctuation."""
    if not isinstance(node, ScalarNode) or not node.value or key.secret:
        return ""
    if node.tag != STR:
        if node.style is not None or not (key.accepts(str) or key.accepts(list)):
            return ""
        if not in_list and not key.takes(node.value):
            return f", {_read_as(node)}; write [] for none, or [{node.value!r}] for that name"
        return quote_it(node)
    if node.style is not None and _fits(key, node.value):
        return ", which is a string; remove the quotes"
    if key.accepts(list):
        return key.list_advice(node.value)
    # YAML 1.1 knows no 1e3: a number with an exponent has a point and a sign there.
    if node.style is None and key.accepts(float) and (number := yaml_number(node.value)) is not None:
        return f", which YAML reads as a string; write {number}"
    return ""


def misread(node: Node) -> str:
    """Advice for a plain scalar that YAML reads as another number than is written; empty for others.

    It begins with its own punctuation.
    """
    is_plain = isinstance(node, ScalarNode) and node.style is None
    if not is_plain or node.tag not in (f"{_TAG}int", f"{_TAG}float") or not _OTHERWISE.fullmatch(node.value):
        return ""
    try:
        number = construct(node)
    except ValueError:
        return ""
    return f", which YAML reads as {number}; write {number} for that"


def misread_option(node: Node, *, may_be_shown: bool) -> str | None:
    """Text for a :func:`misread` scalar where a string may stand as well."""
    if not (hint := misread(node)):
        return None
    if not may_be_shown:
        return "a number that YAML reads otherwise than it is written; quote it"
    return f"expected a number to the base of ten, given {given(node)}{hint}, or quote it: {node.value!r}"


def find_misread(root: Node, *, may_be_shown: bool) -> str | None:
    """Text for the first number in ``root`` that is :func:`misread`."""
    texts = (misread_option(node, may_be_shown=may_be_shown) for node in _unique(root, set()))
    return next(filter(None, texts), None)


def quote_it(node: Node) -> str:
    """Advice for a plain scalar that YAML does not read as a string."""
    return f", {_read_as(node)}; quote it: {node.value!r}"


def _read_as(node: Node) -> str:
    return f"which YAML reads as {_READ_AS.get(node.tag, 'a number')}"


def _unique(node: Node, seen: set[int]) -> Iterator[Node]:
    """The node and all below it, each once however many aliases stand for it."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    for child in _below(node):
        yield from _unique(child, seen)


def _duplicates(mapping: MappingNode) -> Iterator[tuple[Node, int]]:
    """Keys that stand again in a mapping, with the line where each stood first."""
    first_lines: dict[str, int] = {}
    for key, _ in mapping.value:
        if isinstance(key, ScalarNode) and key.tag != MERGE:
            if key.value in first_lines:
                yield key, first_lines[key.value]
            first_lines.setdefault(key.value, line_of(key))


def _below(node: Node) -> list[Node]:
    if isinstance(node, SequenceNode):
        return list(node.value)
    return [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else []


def _weight(node: Node, known: dict[int, float]) -> float:
    """How many values a node stands for once its aliases are resolved; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        known[id(node)] = 1 + sum(_weight(child, known) for child in _below(node))
    return known[id(node)]


def _faults(node: Node, parts: tuple[str, ...], seen: set[int]) -> Iterator[Fault]:
    path = join_path(parts)
    if id(node) in seen:
        return
    seen.add(id(node))
    if node.tag not in _PLAIN_TAGS:
        yield Fault(node, path, refused(node))
    elif isinstance(node, SequenceNode):
        for index, element in enumerate(node.value):
            yield from _faults(element, (*parts[:-1], f"{parts[-1]}[{index}]"), seen)
    elif isinstance(node, MappingNode):
        for key, line in _duplicates(node):
            yield Fault(key, join_path((*parts, key.value)), f"the key stands twice, first in line {line}")
        for key, below in node.value:
            yield from _key_faults(key, below, path)
            yield from _faults(below, (*parts, key.value) if key.tag == STR else parts, seen)
    elif node.tag in _NO_VALUES:
        what = f"{_READ_AS[node.tag]}; quote it" if may_hold_secret(path, path) else given(node) + quote_it(node)
        yield Fault(node, path, f"expected a plain value, given {what}")
    elif isinstance(node, ScalarNode):
        may_be_shown = not may_hold_secret(path, path)
        if fault := misread_option(node, may_be_shown=may_be_shown) or _not_carried(node):
            yield Fault(node, path, fault)


def _key_faults(key: Node, below: Node, path: str) -> Iterator[Fault]:
    if key.tag not in _PLAIN_TAGS:
        yield Fault(key, path, refused(key))
    elif key.tag == MERGE:
        merged = below.value if isinstance(below, SequenceNode) else [below]
        if strange := next((node for node in merged if not isinstance(node, MappingNode)), None):
            yield Fault(strange, path, f"'<<' merges mappings, given {given(strange)}")
    elif key.tag != STR:
        hint = quote_it(key) if isinstance(key, ScalarNode) else ""
        yield Fault(key, path, f"expected a string as key, given {given(key)}{hint}")
    elif fault := _not_carried(key):
        yield Fault(key, path, f"{fault} in a key")


def _not_carried(node: Node) -> str | None:
    try:
        return not_carried(construct(node))
    except ValueError:
        # Whoever builds the value says what is wrong with it.
        return None


def _fits(key: Key, text: str) -> bool:
    try:
        return key.takes(yaml.safe_load(text))
    except (ValueError, yaml.YAMLError):
        return False
