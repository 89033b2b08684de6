"""The kinds of plugins as data: a new kind is a new row here.

vLLM's group names are those of its documentation; groups of our own carry the in-tree drivers, so that a real vLLM
in the same environment does not see them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

GENERAL_PLUGINS_GROUP = "vllm.general_plugins"
PLATFORM_PLUGINS_GROUP = "vllm.platform_plugins"
IN_TREE_PLATFORMS_GROUP = "vllm_ext.platforms"
EXECUTORS_GROUP = "vllm_ext.executors"

GROUP_PREFIXES = ("vllm.", "vllm_ext.")

Pattern = Literal["hook", "driver", "extensions"]


class PluginKind(NamedTuple):
    """One kind of plugin: where it is declared and how it is loaded."""

    key: str
    """Name of the kind, as in the settings (``plugins.<key>``)."""
    groups: tuple[str, ...]
    """Entry-point groups, out-of-tree first."""
    pattern: Pattern
    """stevedore's pattern: hook (all of a kind run), driver (one is chosen), extensions (all are offered)."""


GENERAL = PluginKind("general", (GENERAL_PLUGINS_GROUP,), "hook")
PLATFORM = PluginKind("platform", (PLATFORM_PLUGINS_GROUP, IN_TREE_PLATFORMS_GROUP), "driver")
EXECUTOR = PluginKind("executor", (EXECUTORS_GROUP,), "driver")

KINDS: tuple[PluginKind, ...] = (GENERAL, PLATFORM, EXECUTOR)

KIND_OF_GROUP: dict[str, PluginKind] = {group: kind for kind in KINDS for group in kind.groups}
