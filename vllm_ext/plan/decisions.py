"""The decision about one record."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from vllm_ext.config import Origin
from vllm_ext.discovery import ExtensionRecord

Status = Literal[
    "selected",
    "candidate",
    "available",
    "disabled",
    "incompatible",
    "duplicate",
    "shadowed",
    "invalid",
    "missing",
    "unknown",
]

_KEPT_OUT = ("disabled", "incompatible", "shadowed", "invalid", "missing", "unknown")
"""Statuses of plugins that are not imported, whoever asks."""


class DecisionKey(NamedTuple):
    """What tells decisions apart."""

    distribution: str
    group: str
    name: str
    value: str


class Decision(msgspec.Struct, frozen=True):
    """What is done with one record, or with a name that no record has (``missing``)."""

    group: str
    name: str
    kind: str | None
    """Key of the kind of plugin; ``None`` where the group is unknown."""
    status: Status
    reason: str
    """One sentence."""
    record: ExtensionRecord | None = None
    origin: Origin | None = None
    """The setting that decided, where one did."""
    named: bool = False
    """Whether the user asked for it by name: then it has to work."""
    notes: tuple[str, ...] = ()
    """What is worth knowing of it although nothing is wrong; one sentence each."""

    @property
    def distribution(self) -> str:
        return self.record.distribution if self.record else ""

    @property
    def version(self) -> str:
        return self.record.version if self.record else ""

    @property
    def value(self) -> str:
        return self.record.value if self.record else ""

    @property
    def location(self) -> str:
        return self.record.location if self.record else ""

    @property
    def in_tree(self) -> bool:
        return self.record is not None and self.record.in_tree

    @property
    def key(self) -> DecisionKey:
        return DecisionKey(self.distribution, self.group, self.name, self.value)

    @property
    def is_used(self) -> bool:
        """Whether it will be loaded, or probed."""
        return self.status in ("selected", "candidate")

    @property
    def why_not_loaded(self) -> str:
        """Why it is not imported, whoever asks, as the rest of a sentence; empty where it may be."""
        return f"is not loaded, since it is {self.status}: {self.reason}" if self.status in _KEPT_OUT else ""

    @property
    def reference(self) -> str:
        """How settings and commands name this plugin and none of another distribution: ``distribution:name``."""
        return f"{self.distribution}:{self.name}"

    def __str__(self) -> str:
        return str(self.record) if self.record else repr(self.name)
