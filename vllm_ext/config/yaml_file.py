"""Settings from YAML text: one walk over its nodes, which finds every mistake with its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vllm_ext.config.keys import Key, Setting, all_keys, all_sections, unknown_key
from vllm_ext.config.origin import Origin

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(
    _TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge", "value")
)
_READ_AS = {f"{_TAG}bool": "a boolean", f"{_TAG}null": "null", f"{_TAG}timestamp": "a date"}


def read_settings(path: Path, problems: list[str]) -> list[Setting]:
    """The settings in the file ``path``; what is wrong with it is added to ``problems``."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.append(f"settings file {path} cannot be read: {error.strerror}")
        return []
    except UnicodeDecodeError as error:
        problems.append(f"settings file {path} is not UTF-8 (byte {error.start})")
        return []
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        problems.append(f"{Origin('file', str(path), line)}: not valid YAML: {error.problem}")
        return []
    except (yaml.YAMLError, RecursionError) as error:
        problems.append(f"{Origin('file', str(path))}: not valid YAML: {' '.join(str(error).split())}")
        return []
    try:
        return _FileWalk(path, problems).settings(root)
    except RecursionError:
        problems.append(f"{Origin('file', str(path))}: values are nested too deeply")
        return []


def read_value(text: str) -> Any:
    """The value of one YAML scalar, list or mapping; ValueError if it is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{text!r} is not a YAML value: {getattr(error, 'problem', None) or error}") from error


class _FileWalk:
    """The walk over one file's nodes."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        # Builds plain values from nodes that have been found harmless.
        self._constructor = yaml.SafeLoader("")

    def settings(self, root: Node | None) -> list[Setting]:
        return [] if root is None else list(self._walk_section("", root))

    def _walk_section(self, section: str, node: Node) -> Iterator[Setting]:
        if node.tag == f"{_TAG}null":
            return
        if not isinstance(node, MappingNode) or node.tag != f"{_TAG}map":
            what = f"{section}: " if section else ""
            self._report(node, f"{what}expected a mapping of keys to values, given {_given(node)}")
            return
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            name = key_node.value if isinstance(key_node, ScalarNode) else _given(key_node)
            path = f"{section}.{name}" if section else name
            if name in first_lines:
                self._report(key_node, f"{path}: the key stands twice, first in line {first_lines[name]}")
                continue
            first_lines[name] = key_node.start_mark.line + 1
            if path in all_keys():
                yield from self._leaf(all_keys()[path], key_node, value_node)
            elif path in all_sections():
                yield from self._walk_section(path, value_node)
            else:
                self._report(key_node, f"{path}: {unknown_key(section, name)}")

    def _leaf(self, key: Key, key_node: Node, node: Node) -> Iterator[Setting]:
        if (foreign := _find_foreign(node, set())) is not None:
            self._report(foreign, f"{key.path}: the tag {foreign.tag!r} is refused; settings are plain values")
            return
        try:
            value = key.convert(self._constructor.construct_object(node, deep=True))
        except (ValueError, yaml.YAMLError):
            culprit = _find_culprit(key, node)
            given = _given(culprit) + _advice(key, culprit)
            self._report(culprit, f"{key.path}: expected {key.expected}, given {given}")
            return
        yield Setting(key.path, value, self._origin(key_node))

    def _origin(self, node: Node) -> Origin:
        return Origin("file", str(self.path), node.start_mark.line + 1)

    def _report(self, node: Node, text: str) -> None:
        self.problems.append(f"{self._origin(node)}: {text}")


def _find_foreign(node: Node, seen: set[int]) -> Node | None:
    """The first node whose tag could build something else than plain values."""
    if id(node) in seen:
        return None
    seen.add(id(node))
    if node.tag not in _PLAIN_TAGS:
        return node
    if isinstance(node, SequenceNode):
        below = list(node.value)
    elif isinstance(node, MappingNode):
        below = [part for pair in node.value for part in pair]
    else:
        below = []
    return next((found for child in below if (found := _find_foreign(child, seen)) is not None), None)


def _find_culprit(key: Key, node: Node) -> Node:
    """The element that does not fit where a list may stand, else the node itself."""
    if key.accepts_list and isinstance(node, SequenceNode):
        return next((element for element in node.value if element.tag != f"{_TAG}str"), node)
    return node


def _given(node: Node) -> str:
    if isinstance(node, SequenceNode):
        return "a list"
    if isinstance(node, MappingNode):
        return "a mapping"
    text = str(node.value)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _advice(key: Key, node: Node) -> str:
    """What to do where YAML made something else of a word that was meant as one."""
    plain = isinstance(node, ScalarNode) and node.style is None and node.value
    if not plain or node.tag == f"{_TAG}str" or not (key.accepts_string or key.accepts_list):
        return ""
    return f", which YAML reads as {_READ_AS.get(node.tag, 'a number')}; quote it: {node.value!r}"
