"""The kinds of plugins as data: a new kind is a new row here.

vLLM's group names are those of its documentation and of its sources; groups of our own carry the in-tree drivers, so
that a real vLLM in the same environment does not see them.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

GENERAL_PLUGINS_GROUP = "vllm.general_plugins"
PLATFORM_PLUGINS_GROUP = "vllm.platform_plugins"
IO_PROCESSOR_PLUGINS_GROUP = "vllm.io_processor_plugins"
STAT_LOGGER_PLUGINS_GROUP = "vllm.stat_logger_plugins"
ENDPOINT_PLUGINS_GROUP = "vllm.endpoint_plugins"
LOGITSPROCS_GROUP = "vllm.logits_processors"
IN_TREE_PLATFORMS_GROUP = "vllm_ext.platforms"
IN_TREE_STAT_LOGGERS_GROUP = "vllm_ext.stat_loggers"
EXECUTORS_GROUP = "vllm_ext.executors"
VLLM_BUILTIN_PLATFORMS_GROUP = "vllm built-in"
"""Where vLLM's own platforms are listed when it is the host; no metadata can declare a group of this form."""
VLLM_BUILTIN_PLATFORMS = ("cpu", "cuda", "rocm", "tpu", "xpu")
"""Names in ``vllm.platforms.builtin_platform_plugins``; each is detected by ``vllm.platforms.NAME_platform_plugin``."""

GROUP_PREFIXES = ("vllm.", "vllm_ext.")

_HEAD_LIKENESS, _STEM_LIKENESS = 0.7, 0.75

Pattern = Literal["hook", "driver", "extensions"]
ValueForm = Literal["hook", "class path", "class", "factory"]


class PluginKind(NamedTuple):
    """One kind of plugin: where it is declared, what it is, and how it is loaded."""

    key: str
    """Name of the kind, as in the settings (``plugins.<key>``)."""
    groups: tuple[str, ...]
    """Entry-point groups, out-of-tree first."""
    pattern: Pattern
    """stevedore's pattern: hook (all of a kind run), driver (one is chosen), extensions (all are offered)."""
    form: ValueForm
    """What the entry point's value is: a hook (callable without arguments, or a module), a callable that returns a
    class path or ``None``, a class, or a factory of an object."""
    contract: str | None
    """Class path of what the class or the object has to be; ``None`` for a hook, whose result is ignored."""
    vllm_contracts: tuple[str, ...] = ()
    """Class paths of the same in vLLM, for plugins that are meant for it; a class has to be of one of them."""

    @property
    def title(self) -> str:
        """The kind in a sentence: ``stat logger`` for ``stat_logger``."""
        return self.key.replace("_", " ")

    @property
    def is_called(self) -> bool:
        """Whether what the entry point names is called when the plugin is loaded, unless it is a module."""
        return self.form != "class"


_CONTRACTS = "vllm_ext.contracts"

GENERAL = PluginKind("general", (GENERAL_PLUGINS_GROUP,), "hook", "hook", None)
PLATFORM = PluginKind(
    "platform",
    (PLATFORM_PLUGINS_GROUP, IN_TREE_PLATFORMS_GROUP, VLLM_BUILTIN_PLATFORMS_GROUP),
    "driver",
    "class path",
    f"{_CONTRACTS}.platform.Platform",
    ("vllm.platforms.interface.Platform",),
)
IO_PROCESSOR = PluginKind(
    "io_processor",
    (IO_PROCESSOR_PLUGINS_GROUP,),
    "driver",
    "class path",
    f"{_CONTRACTS}.io_processor.IOProcessor",
    ("vllm.plugins.io_processors.interface.IOProcessor",),
)
STAT_LOGGER = PluginKind(
    "stat_logger",
    (STAT_LOGGER_PLUGINS_GROUP, IN_TREE_STAT_LOGGERS_GROUP),
    "extensions",
    "class",
    f"{_CONTRACTS}.stat_logger.StatLoggerBase",
    ("vllm.v1.metrics.loggers.StatLoggerBase",),
)
ENDPOINT = PluginKind(
    "endpoint", (ENDPOINT_PLUGINS_GROUP,), "extensions", "factory", f"{_CONTRACTS}.endpoint.EndpointPlugin"
)
LOGITS_PROCESSOR = PluginKind(
    "logits_processor",
    (LOGITSPROCS_GROUP,),
    "extensions",
    "class",
    f"{_CONTRACTS}.logits_processor.LogitsProcessor",
    # Of its two model runners each has its own.
    (
        "vllm.v1.sample.logits_processor.interface.LogitsProcessor",
        "vllm.v1.worker.gpu.sample.logits_processor.interface.LogitsProcessor",
    ),
)
EXECUTOR = PluginKind("executor", (EXECUTORS_GROUP,), "driver", "class", f"{_CONTRACTS}.executor.Executor")

KINDS: tuple[PluginKind, ...] = (GENERAL, PLATFORM, IO_PROCESSOR, STAT_LOGGER, ENDPOINT, LOGITS_PROCESSOR, EXECUTOR)


def is_read_by_vllm(group: str) -> bool:
    """Whether a group is of vLLM, and not one of our own, which it does not know."""
    return group.partition(".")[0] == "vllm" or group == VLLM_BUILTIN_PLATFORMS_GROUP


KIND_OF_GROUP: dict[str, PluginKind] = {group: kind for kind in KINDS for group in kind.groups}

ENTRY_POINT_GROUPS: tuple[str, ...] = tuple(g for g in KIND_OF_GROUP if g != VLLM_BUILTIN_PLATFORMS_GROUP)
"""Groups that a distribution may declare plugins in."""


def closest_group(group: str) -> str | None:
    """The known group that an unknown one is most likely a misspelling of."""
    head, stem = _parts(group)
    near = [
        (SequenceMatcher(None, group, known).ratio(), known)
        for known in ENTRY_POINT_GROUPS
        if SequenceMatcher(None, head, "vllm").ratio() >= _HEAD_LIKENESS
        and SequenceMatcher(None, stem, _parts(known)[1]).ratio() >= _STEM_LIKENESS
    ]
    return max(near)[1] if near else None


def _parts(group: str) -> tuple[str, str]:
    """``vllm`` and ``stat_logger`` of ``vllm.stat_logger_plugins``, however the words are joined.

    What all groups have in common would make any two of them alike.
    """
    head, *words = re.findall(r"[^\W_]+", group.casefold()) or [""]
    if words and words[0] == "ext":
        del words[0]
    if words and words[-1] in ("plugin", "plugins"):
        del words[-1]
    return head, "_".join(words)
