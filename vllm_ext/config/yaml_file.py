"""Settings from YAML text: one walk over its nodes, which finds every mistake with its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vllm_ext.config import yaml_nodes as nodes
from vllm_ext.config.keys import REDACTED, Key, Setting, all_keys, all_sections, unknown_key
from vllm_ext.config.options import MAPPINGS, MAX_DEPTH, TOO_DEEP, expected, plain
from vllm_ext.config.origin import Origin
from vllm_ext.config.paths import join_path
from vllm_ext.config.redaction import may_hold_secret

_MAX_BYTES = 2**20
"""What a settings file may have; this much takes some ten seconds to read."""


def read_settings(path: Path, problems: list[str]) -> list[Setting]:
    """The settings in the file ``path``; what is wrong with it is added to ``problems``."""
    try:
        # A path may lead to a device that has no end.
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        problems.append(f"settings file {path} cannot be read: {error.strerror}")
        return []
    if len(content) > _MAX_BYTES:
        problems.append(f"settings file {path} has more than {_MAX_BYTES} bytes, and nothing of it is used")
        return []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"settings file {path} is not UTF-8 (byte {error.start})")
        return []
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        problems.append(f"{Origin('file', str(path), line)}: not valid YAML: {error.problem}")
        return []
    except yaml.YAMLError as error:
        problems.append(f"{Origin('file', str(path))}: not valid YAML: {' '.join(str(error).split())}")
        return []
    except RecursionError:
        problems.append(f"{Origin('file', str(path))}: not valid YAML: its values are nested too deeply")
        return []
    try:
        return _FileWalk(path, problems).settings(root)
    except RecursionError:
        problems.append(f"{Origin('file', str(path))}: values are nested too deeply")
        return []


def find_misread(text: str, *, may_be_shown: bool) -> str | None:
    """What to say of a number in a YAML value that YAML reads otherwise than it is written; ``None`` without one."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else nodes.find_misread(node, may_be_shown=may_be_shown)
    except (yaml.YAMLError, RecursionError):
        # Whoever reads the value says what is wrong with it.
        return None


def read_value(text: str) -> Any:
    """The value of one YAML scalar, list or mapping; ValueError, with what is wrong, if it is none."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        if (foreign := nodes.find_foreign(node)) is not None:
            raise ValueError(nodes.refused(foreign))
        if (twice := nodes.find_twice(node)) is not None:
            raise ValueError(f"the key {twice.value!r} stands twice")
        if nodes.is_endless(node):
            raise ValueError(nodes.ENDLESS)
        return nodes.construct(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(getattr(error, "problem", None) or str(error)) from error


class _FileWalk:
    """The walk over one file's nodes."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self.problems = problems

    def settings(self, root: Node | None) -> list[Setting]:
        return [] if root is None else list(self._walk_section("", root))

    def _walk_section(self, section: str, node: Node) -> Iterator[Setting]:
        if node.tag == nodes.NULL:
            return
        if not isinstance(node, MappingNode) or node.tag != nodes.MAP:
            what = f"{section}: " if section else ""
            if isinstance(node, MappingNode):
                self._report(node, f"{what}{nodes.refused(node)}")
                return
            self._report(node, f"{what}expected a mapping of keys to values, given {nodes.given(node)}")
            return
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            name = key_node.value if isinstance(key_node, ScalarNode) else nodes.given(key_node)
            # A name with dots is put in quotes there, so that it is never taken for the path of a nested key.
            path = join_path((*filter(None, section.split(".")), name))
            if name in first_lines:
                self._report(key_node, f"{path}: the key stands twice, first in line {first_lines[name]}")
                continue
            first_lines[name] = nodes.line_of(key_node)
            if path in all_keys():
                yield from self._value(all_keys()[path], key_node, value_node)
            elif path in all_sections():
                yield from self._walk_section(path, value_node)
            elif key_node.tag == nodes.MERGE:
                self._report(key_node, f"{path}: a section cannot be merged into another; write its keys out")
            else:
                self._report(key_node, f"{path}: {_as_nested(section, name) or unknown_key(section, name)}")

    def _value(self, key: Key, key_node: Node, node: Node) -> Iterator[Setting]:
        if key.is_mapping:
            yield from self._options(key, key_node, node)
            return
        if (foreign := nodes.find_foreign(node)) is not None:
            self._report(foreign, f"{key.path}: {nodes.refused(foreign)}")
            return
        try:
            setting = Setting(key.parts, key.convert(nodes.construct(node)), self._origin(key_node))
        except ValueError:
            culprit = _find_culprit(key, node)
            word = culprit.value if culprit.tag == nodes.STR else None
            text = key.mismatch(word, nodes.given(culprit)) + nodes.advice(key, culprit, in_list=culprit is not node)
            self._report(culprit, f"{key.path}: {text}")
            return
        if hint := nodes.misread(node):
            self._report(node, f"{key.path}: {key.mismatch(node.value)}{hint}")
            return
        yield setting

    def _options(self, key: Key, key_node: Node, node: Node) -> Iterator[Setting]:
        if faults := list(nodes.find_faults(node, key.parts)):
            for fault in faults:
                self._report(fault.node, f"{fault.path}: {fault.text}")
        elif node.tag != nodes.NULL:
            yield from self._leaves(key.parts, key_node, node)

    def _leaves(self, parts: tuple[str, ...], key_node: Node, node: Node) -> Iterator[Setting]:
        """A setting for each leaf of a free mapping; an empty one, also one that is left empty, is a leaf."""
        if len(parts) > MAX_DEPTH:
            self._report(node, f"{join_path(parts[:MAPPINGS])}: {TOO_DEEP}")
            return
        try:
            pairs = nodes.merged_pairs(node) if isinstance(node, MappingNode) and node.tag == nodes.MAP else None
            if pairs:
                for name, below in pairs:
                    yield from self._leaves((*parts, name.value), name, below)
            elif pairs is not None or (node.tag == nodes.NULL and len(parts) == MAPPINGS):
                yield Setting(parts, {}, self._origin(key_node))
            elif len(parts) > MAPPINGS:
                yield Setting(parts, plain(nodes.construct(node)), self._origin(key_node))
            else:
                raise ValueError("not a mapping")
        except ValueError:
            path, given = join_path(parts), nodes.given(node)
            shown = REDACTED if may_hold_secret(path, path) else given
            self._report(node, f"{path}: expected {expected(parts)}, given {shown}")

    def _origin(self, node: Node) -> Origin:
        return Origin("file", str(self.path), nodes.line_of(node))

    def _report(self, node: Node, text: str) -> None:
        self.problems.append(f"{self._origin(node)}: {text}")


def _as_nested(section: str, name: str) -> str | None:
    """Text for a key with dots that names a setting below ``section``; ``None`` where it names none."""
    parts = (*filter(None, section.split(".")), *name.split("."))
    key = all_keys().get(parts[0])
    if "." not in name or not (".".join(parts) in {*all_keys(), *all_sections()} or (key and key.is_mapping)):
        return None
    *outer, last = name.split(".")
    nested = "".join(f"{part}: {{" for part in outer) + f"{last}: ..." + "}" * len(outer)
    return f"unknown key; a key with dots is no path here, so write it nested: {nested}"


def _find_culprit(key: Key, node: Node) -> Node:
    """The element that does not fit where a list may stand, else the node itself."""
    if key.accepts(list) and isinstance(node, SequenceNode):
        return next((element for element in node.value if element.tag != nodes.STR), node)
    return node
