"""Settings of several sources in one tree: mappings merge, everything else replaces what was there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from vllm_ext.config.keys import Setting

Tree: TypeAlias = "dict[str, Tree | Setting]"


def put(tree: Tree, setting: Setting) -> None:
    """Let ``setting`` win over what ``tree`` has at its place."""
    *above, name = setting.parts
    for part in above:
        branch = tree.get(part)
        if not isinstance(branch, dict):
            branch = tree[part] = {}
        tree = branch
    if setting.value == {} and isinstance(tree.get(name), dict):
        return  # An empty mapping adds nothing to another one.
    tree[name] = setting


def find(tree: Tree, parts: tuple[str, ...]) -> Setting | None:
    """The setting at exactly these parts."""
    node: Tree | Setting | None = tree
    for part in parts:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, Setting) else None


def leaves(tree: Tree) -> Iterator[Setting]:
    """All settings, depth first."""
    for node in tree.values():
        if isinstance(node, Setting):
            yield node
        else:
            yield from leaves(node)


def values(tree: Tree) -> dict[str, Any]:
    """The tree with the values in the places of their settings."""
    return {name: node.value if isinstance(node, Setting) else values(node) for name, node in tree.items()}
